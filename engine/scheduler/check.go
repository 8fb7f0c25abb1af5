package scheduler

import "fmt"

// Check audits the scheduler and its cache: every request is in one place, slots and pages have one owner or are shared whole,
// counts agree. It returns the first contradiction. It costs time in proportion to the cache.
func (s *Scheduler) Check() error {
	slots := make([]int, s.cfg.MaxRows)
	for _, slot := range s.slots {
		slots[slot]++
	}
	planned := map[*Request]int{}
	sampled := map[*Request]int{}
	for i := range s.inFlight {
		seen := map[*Request]bool{}
		for _, p := range s.steps[(s.head+i)%len(s.steps)].rows {
			if seen[p.r] {
				return fmt.Errorf("request %d is twice in a step", p.r.arrival)
			}
			seen[p.r] = true
			planned[p.r]++
			if p.sample {
				sampled[p.r]++
			}
		}
	}
	tables := make([][]int32, 0, len(s.running))
	leaving := 0
	for i, r := range s.running {
		slots[r.slot]++
		tables = append(tables, r.pages)
		switch {
		case r.state != running && r.state != preempted && r.state != ended:
			return fmt.Errorf("request %d runs in state %d", r.arrival, r.state)
		case i > 0 && s.running[i-1].arrival >= r.arrival:
			return fmt.Errorf("request %d runs out of order", r.arrival)
		case planned[r] != r.inFlight || sampled[r] != r.pending:
			return fmt.Errorf("request %d has %d rows planned, %d of them sampled; it says %d and %d",
				r.arrival, planned[r], sampled[r], r.inFlight, r.pending)
		case r.computed > len(r.pages)*s.cfg.PageSize:
			return fmt.Errorf("request %d computed %d tokens into %d pages", r.arrival, r.computed, len(r.pages))
		case r.state == running && r.numOutput() > r.MaxNewTokens:
			return fmt.Errorf("request %d samples %d tokens of %d", r.arrival, r.numOutput(), r.MaxNewTokens)
		case r.state != running && r.inFlight == 0:
			return fmt.Errorf("request %d has left and holds a slot", r.arrival)
		}
		if r.state != running {
			leaving++
		}
		delete(planned, r)
	}
	for r := range planned {
		return fmt.Errorf("request %d is planned and does not run", r.arrival)
	}
	for slot, owners := range slots {
		if owners != 1 {
			return fmt.Errorf("slot %d has %d owners", slot, owners)
		}
	}
	if leaving != s.leaving {
		return fmt.Errorf("%d requests leave, the books say %d", leaving, s.leaving)
	}
	for i, r := range s.waiting {
		if r.state != waiting || len(r.pages) > 0 || r.inFlight > 0 || r.pending > 0 {
			return fmt.Errorf("request %d waits in state %d with %d pages", r.arrival, r.state, len(r.pages))
		}
		if i > 0 && s.waiting[i-1].arrival >= r.arrival {
			return fmt.Errorf("request %d waits out of order", r.arrival)
		}
	}
	return s.cache.Check(tables)
}
