package speculate

// Match bounds the lengths of matches: the end of the tokens, Min to Max of them, is looked for earlier in them.
type Match struct{ Min, Max int }

// maxCandidates is how many earlier places with the same last Min tokens are compared, the latest first: so a token costs O(1).
const maxCandidates = 32

// Sequence indexes one request's tokens. It keeps no copy of them: methods are given the same tokens, and those that were added since. Its
// memory is at most 12 bytes a token. It is not safe for concurrent use.
type Sequence struct {
	match Match
	n     int     // tokens indexed
	heads []int32 // hash of Min tokens -> where the last ones of that hash end; 0: nowhere
	prev  []int32 // [end-Min] where the ones before of the same bucket end

	at     int // tokens[at] is what follows the match; 0: there is none
	length int // of the match, at most Max

	rates rates
}

// NewSequence indexes tokens, a prompt mostly.
func NewSequence(m Match, tokens []int32) *Sequence {
	s := &Sequence{match: m, rates: newRates()}
	s.index(tokens)
	s.search(tokens)
	return s
}

// chance goes by the length of the match, which every guess that is right makes longer by one.
func (s *Sequence) chance(k int, p *Policy) (float64, bool) {
	if s.at == 0 {
		return 0, false
	}
	class := classOf(s.length + k)
	return mixed(s.rates[class], p.all[class]), true
}

// Extend implements [Guesser].
func (s *Sequence) Extend(tokens []int32, p *Policy) {
	for s.n < len(tokens) {
		next := tokens[s.n]
		right := s.at > 0 && tokens[s.at] == next
		if s.at > 0 {
			s.rates.note(s.length, right, p)
		}
		s.index(tokens[:s.n+1])
		if right { // the longest match goes on: a longer one elsewhere would have been longer before, too
			s.at++
			s.length = min(s.length+1, s.match.Max)
		} else {
			s.search(tokens[:s.n])
		}
	}
}

// Matched is the length of the match at the end of the tokens, 0 if there is none.
func (s *Sequence) Matched() int {
	if s.at == 0 {
		return 0
	}
	return s.length
}

// Propose implements [Guesser]: it gives the n tokens that followed the match. Where the match overlaps the end, what it proposes repeats.
func (s *Sequence) Propose(tokens []int32, n int, drafts []int32) []int32 {
	if s.at == 0 {
		return drafts
	}
	first := len(drafts)
	for i := range n {
		if at := s.at + i; at < len(tokens) {
			drafts = append(drafts, tokens[at])
		} else {
			drafts = append(drafts, drafts[first+at-len(tokens)])
		}
	}
	return drafts
}

// index enters the places where tokens' new n-grams end.
func (s *Sequence) index(tokens []int32) {
	if len(s.heads) < len(tokens) {
		size := max(64, len(s.heads))
		for size < 2*len(tokens) {
			size *= 2
		}
		s.heads, s.prev = make([]int32, size), append(make([]int32, 0, size), s.prev...)
		for end := s.match.Min; end <= s.n; end++ {
			s.enter(tokens, end)
		}
	}
	for ; s.n < len(tokens); s.n++ {
		if end := s.n + 1; end >= s.match.Min {
			s.prev = append(s.prev, 0)
			s.enter(tokens, end)
		}
	}
}

func (s *Sequence) enter(tokens []int32, end int) {
	head := s.bucket(tokens[end-s.match.Min : end])
	s.prev[end-s.match.Min] = *head
	*head = int32(end)
}

func (s *Sequence) bucket(gram []int32) *int32 {
	h := uint64(0x9E3779B97F4A7C15)
	for _, t := range gram {
		h = (h ^ uint64(uint32(t))) * 0xFF51AFD7ED558CCD
		h ^= h >> 32
	}
	return &s.heads[h&uint64(len(s.heads)-1)]
}

// search finds the longest earlier match of tokens' end, the latest of those of one length.
func (s *Sequence) search(tokens []int32) {
	s.at, s.length = 0, 0
	n := len(tokens)
	if n <= s.match.Min {
		return
	}
	// The last place entered is the end itself.
	end := int(s.prev[n-s.match.Min])
	for i := 0; i < maxCandidates && end > 0 && s.length < s.match.Max; i++ {
		length := 0
		for length < min(s.match.Max, end) && tokens[end-1-length] == tokens[n-1-length] {
			length++
		}
		if length >= s.match.Min && length > s.length {
			s.at, s.length = end, length
		}
		end = int(s.prev[end-s.match.Min])
	}
}
