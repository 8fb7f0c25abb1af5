package backend

// Follower works out what a draft head reads of each step, for a backend that has one. The head reads pairs: a token and the model's hidden
// state of the token before it. A pair's keys and values lie in the head's own cache, in the pages of the model's, at the position of the
// hidden state; a token makes its pair as soon as it is known, so the one that a row samples does in the same step. It is not safe for
// concurrent use.
//
// The head need not see a sequence from its beginning: pages of a cached prefix hold pairs only if those who filled them were followed.
type Follower struct {
	pageSize int
	runs     []run // by slot
	filled   []int // [page] its first positions that hold pairs of the tokens there
	reads    []Read
}

// run is what the head has of a sequence.
type run struct {
	since int  // the first position that it sees, the beginning of a page
	fresh bool // nothing was read yet
	held  bool // the last token's state waits for the token behind it
}

// Read is what the head reads of one row. To the head, sequences begin where it began to follow them.
type Read struct {
	Row      int // of the batch
	Slot     int
	Begins   bool    // it is the first that the head reads in Slot
	Position int     // of the first pair
	Pages    []int32 // page i holds positions i*PageSize.. of the head
	Tokens   []int32 // [pairs]
	// Held tells that the first pair's state is the one that is held for Slot; States are those of the others, as tokens of the step.
	Held   bool
	States []int
	// Holds tells that the state of token Hold of the step is to be held for Slot.
	Holds bool
	Hold  int
	Guess int // guesses to make behind the last pair
}

// NewFollower returns the books of a backend that is described by info.
func NewFollower(info Info) *Follower {
	return &Follower{pageSize: info.PageSize, runs: make([]run, info.MaxRows), filled: make([]int, info.NumPages)}
}

// Begin is told of each row with a Start before the step that it is in.
func (f *Follower) Begin(r *Row) { f.runs[r.Slot] = run{since: f.since(r), fresh: true} }

// Step lists what the head reads of a step that gave results, for rows that are followed; first[i] is the step's token that row i begins
// with. Steps are told in the order of their launch. The list is valid until the next call.
func (f *Follower) Step(rows []Row, first []int, results []RowResult) []Read {
	f.reads = f.reads[:0]
	for i := range rows {
		r := &rows[i]
		if !r.Follow || results[i].NonFinite {
			f.forget(r)
			continue
		}
		f.reads = append(f.reads, f.read(r, i, first[i], &results[i]))
	}
	return f.reads
}

func (f *Follower) read(r *Row, i, first int, result *RowResult) Read {
	run := &f.runs[r.Slot]
	known := r.Tokens
	if len(known) == 0 { // the slot's token was paired when it was sampled
		known = append([]int32{0}, r.Drafts[:len(result.More)]...)
	}
	out := Read{
		Row: i, Slot: r.Slot, Begins: run.fresh, Position: r.Position - run.since, Pages: r.Pages[run.since/f.pageSize:], Held: run.held, Guess: r.Guess,
	}
	run.fresh = false
	if run.held {
		out.Position--
		out.Tokens = append(out.Tokens, known[0])
	}
	for j, token := range known[1:] {
		out.Tokens, out.States = append(out.Tokens, token), append(out.States, first+j)
	}
	last := first + len(known) - 1
	if run.held = !r.Sample; run.held {
		out.Holds, out.Hold = true, last
	} else {
		next := result.Token
		if n := len(result.More); n > 0 {
			next = result.More[n-1].Token
		}
		out.Tokens, out.States = append(out.Tokens, next), append(out.States, last)
	}
	if run.since == 0 { // others' positions must be the same
		f.fill(out.Pages, out.Position, out.Position+len(out.Tokens))
	}
	return out
}

// since is 0 if all pages before the row's hold pairs, else the row's own.
func (f *Follower) since(r *Row) int {
	at := r.Position / f.pageSize
	for _, page := range r.Pages[:at] {
		if f.filled[page] < f.pageSize {
			return at * f.pageSize
		}
	}
	return 0
}

// forget notes that the row has put tokens without pairs into its pages.
func (f *Follower) forget(r *Row) {
	for at := r.Position; at < r.Position+r.NumTokens(); at = (at/f.pageSize + 1) * f.pageSize {
		filled := &f.filled[r.Pages[at/f.pageSize]]
		*filled = min(*filled, at%f.pageSize)
	}
}

// fill notes that the positions from..to-1 of a sequence's pages hold pairs.
func (f *Follower) fill(pages []int32, from, to int) {
	for at := from; at < to; at++ {
		if filled := &f.filled[pages[at/f.pageSize]]; *filled >= at%f.pageSize { // else there is a gap before
			*filled = at%f.pageSize + 1
		}
	}
}
