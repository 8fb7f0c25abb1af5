package grammar

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// A place's tokens fall into three: those it allows whatever surrounds it, those it never allows, and those that depend on its
// surroundings because the place's rule ends within them. The first two are worked out once for a state (local); only the few
// that depend are followed for a given stack. Whole masks are kept too, as outputs tend to pass the same places again.

// local is what a state allows, apart from what lies below it.
type local struct {
	few     []int32  // the tokens, if they are few
	allowed []uint32 // else their mask
	// rest are the texts that tokens go on with once the rule has ended, as a trie, with the tokens at their ends.
	rest   []trieNode
	tokens []int32
}

// fewTokens is the number of tokens up to which a list is smaller than a mask.
const fewTokens = 256

// relative follows places above an unknown frame. Sets of places are numbered, and their successors remembered.
type relative struct {
	sets []configs
	ids  map[string]int32
	next [][]int32 // by set: [256] successors; nil while none is known
}

const (
	deadSet    = -1
	unknownSet = -2
	// What one grammar may remember: 4 MiB of sets, 8 MiB of states' tokens, 4 MiB of whole masks.
	maxSets       = 4 << 10
	maxLocalWords = 2 << 20
	maxMaskWords  = 1 << 20
)

// Mask sets the bits of the tokens that may come next and clears the others; dst is [Vocabulary.MaskWords]. It returns false if
// no token may, which a vocabulary that lacks some byte can lead to.
func (m *Matcher) Mask(dst []uint32) bool {
	g := m.g
	dst = dst[:g.vocab.MaskWords()]
	if m.ended {
		clear(dst)
		g.setEOS(dst)
		return len(g.vocab.eos) > 0
	}
	key := string(m.state.key(nil))
	g.mu.Lock()
	known, ok := g.masks[key]
	g.mu.Unlock()
	if !ok {
		known = g.newMask(m.state)
		g.mu.Lock()
		if (len(g.masks)+1)*len(known) > maxMaskWords {
			clear(g.masks)
		}
		g.masks[key] = known
		g.mu.Unlock()
	}
	copy(dst, known)
	return slices.ContainsFunc(dst, func(w uint32) bool { return w != 0 })
}

func (g *Grammar) setEOS(dst []uint32) {
	for _, id := range g.vocab.eos {
		if id >= 0 && int(id) < g.vocab.size {
			dst[id/32] |= 1 << (id % 32)
		}
	}
}

// key identifies the places: two with equal keys allow the same.
func (c *configs) key(dst []byte) []byte {
	for i := range c.all {
		for f := &c.all[i]; f != nil; f = f.below {
			dst = binary.AppendVarint(dst, int64(f.state))
		}
		dst = binary.AppendVarint(dst, -2)
	}
	if c.finished {
		dst = append(dst, '.')
	}
	return dst
}

func (g *Grammar) newMask(c configs) []uint32 {
	mask := make([]uint32, g.vocab.MaskWords())
	for i := range c.all {
		l := g.local(c.all[i].state)
		for j, w := range l.allowed {
			mask[j] |= w
		}
		setAll(mask, l.few)
		if below := c.all[i].below; below != nil && len(l.rest) > 1 {
			var start configs
			g.machine.enter(&start, below.state, below.below)
			g.followRest(mask, l, start)
		}
	}
	if c.finished {
		g.setEOS(mask)
	}
	return mask
}

func setAll(mask []uint32, ids []int32) {
	for _, id := range ids {
		mask[id/32] |= 1 << (id % 32)
	}
}

// followRest adds the tokens whose rest the places in start allow.
func (g *Grammar) followRest(mask []uint32, l *local, start configs) {
	var path [maxTokenBytes + 1]configs
	path[0] = start
	for i := 0; i < len(l.rest)-1; {
		n := l.rest[i]
		to := g.machine.advance(path[n.depth], n.b)
		if to.dead() {
			i = int(n.end)
			continue
		}
		path[n.depth+1] = to
		setAll(mask, l.tokens[n.tokens:l.rest[i+1].tokens])
		i++
	}
}

// local returns what a state allows, worked out on first use.
func (g *Grammar) local(state int32) *local {
	if like, ok := g.machine.like[state]; ok {
		state = like
	}
	if l := g.locals[state].Load(); l != nil {
		return l
	}
	g.relativeMu.Lock()
	defer g.relativeMu.Unlock()
	if l := g.locals[state].Load(); l != nil {
		return l
	}
	l := g.newLocal(state)
	if g.localWords += len(l.allowed) + len(l.few) + len(l.tokens) + 4*len(l.rest); g.localWords <= maxLocalWords {
		g.locals[state].Store(l)
	}
	return l
}

func (g *Grammar) newLocal(state int32) *local {
	r := &g.relative
	if len(r.sets) > maxSets {
		*r = relative{ids: map[string]int32{}}
	}
	v, l := g.vocab, &local{}
	mask := make([]uint32, v.MaskWords())
	count := 0
	var path [maxTokenBytes + 1]int32
	path[0] = r.add(configs{all: []frame{{state, unknown}}})
	var ends []int32 // nodes where the rule may have ended and the token goes on
	for i := 0; i < len(v.nodes)-1; {
		n := &v.nodes[i]
		set := r.advance(&g.machine, path[n.depth], n.b)
		if set < 0 {
			i = int(n.end)
			continue
		}
		path[n.depth+1] = set
		tokens := v.tokens[n.tokens:v.nodes[i+1].tokens]
		setAll(mask, tokens)
		count += len(tokens)
		if r.sets[set].finished && int(n.end) > i+1 && g.machine.hasCalls {
			ends = append(ends, int32(i))
			if len(r.sets[set].all) == 0 {
				i = int(n.end)
				continue
			}
		}
		i++
	}
	type dependent struct {
		id   int32
		rest []byte
	}
	var all []dependent
	for _, i := range ends {
		n := &v.nodes[i]
		for _, id := range v.tokens[v.nodes[i+1].tokens:v.nodes[n.end].tokens] {
			if mask[id/32]&(1<<(id%32)) == 0 {
				all = append(all, dependent{id, v.texts[id][n.depth+1:]})
			}
		}
	}
	// A rest may stand for several tokens, and a token have several rests: each pair is one leaf of the trie.
	leaves := make([]int32, len(all))
	for i := range leaves {
		leaves[i] = int32(i)
	}
	l.rest, l.tokens = buildTrie(leaves, func(i int32) []byte { return all[i].rest })
	for i, leaf := range l.tokens {
		l.tokens[i] = all[leaf].id
	}
	if count > fewTokens {
		l.allowed = mask
		return l
	}
	for i, w := range mask {
		for ; w != 0; w &= w - 1 {
			l.few = append(l.few, int32(32*i+bits.TrailingZeros32(w)))
		}
	}
	return l
}

// add numbers a set of places.
func (r *relative) add(c configs) int32 {
	key := string(c.key(nil))
	if id, ok := r.ids[key]; ok {
		return id
	}
	id := int32(len(r.sets))
	r.ids[key] = id
	r.sets = append(r.sets, c)
	r.next = append(r.next, nil)
	return id
}

func (r *relative) advance(m *machine, set int32, b byte) int32 {
	next := r.next[set]
	if next == nil {
		next = make([]int32, 256)
		for i := range next {
			next[i] = unknownSet
		}
		r.next[set] = next
	}
	if to := next[b]; to != unknownSet {
		return to
	}
	to := int32(deadSet)
	if c := m.advance(r.sets[set], b); !c.dead() {
		to = r.add(c)
	}
	next[b] = to
	return to
}
