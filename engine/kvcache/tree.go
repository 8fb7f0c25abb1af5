package kvcache

import "slices"

// find returns the page below parent that holds exactly tokens, or none.
func (c *Cache) find(salt Salt, parent int32, tokens []int32) int32 {
	hash := c.hash(salt, parent, tokens)
	for page := c.buckets[hash&uint64(len(c.buckets)-1)]; page != none; page = c.nodes[page].next {
		n := &c.nodes[page]
		if n.hash == hash && n.parent == parent && (parent != none || n.salt == salt) &&
			slices.Equal(c.tokensOf(page), tokens) {
			return page
		}
	}
	return none
}

// insert makes page, which one sequence holds, a node below parent.
func (c *Cache) insert(salt Salt, parent int32, tokens []int32, page int32) {
	hash := c.hash(salt, parent, tokens)
	bucket := &c.buckets[hash&uint64(len(c.buckets)-1)]
	used := c.clock
	if parent != none {
		used = c.nodes[parent].used // never later than the parent, or it would be reclaimed after it
	}
	c.nodes[page] = node{inTree: true, parent: parent, salt: salt, next: *bucket, hash: hash, used: used}
	*bucket = page
	copy(c.tokensOf(page), tokens)
	c.refs[page]++
	c.inTree++
	if parent != none {
		c.nodes[parent].children++
		c.leaves.remove(parent)
	}
}

// evict takes the least recently used leaf that no sequence holds out of the tree and frees it.
func (c *Cache) evict() bool {
	page, ok := c.leaves.oldest()
	if !ok {
		return false
	}
	c.leaves.remove(page)
	n := &c.nodes[page]
	link := &c.buckets[n.hash&uint64(len(c.buckets)-1)]
	for *link != page {
		link = &c.nodes[*link].next
	}
	*link = n.next
	n.inTree = false
	c.inTree--
	c.idle--
	c.evictions++
	if n.parent != none {
		parent := &c.nodes[n.parent]
		parent.children--
		if parent.children == 0 && c.refs[n.parent] == 1 {
			c.leaves.add(n.parent)
		}
	}
	c.refs[page] = 0
	c.free = append(c.free, page)
	return true
}

func (c *Cache) tokensOf(page int32) []int32 {
	return c.tokens[int(page)*c.pageSize : (int(page)+1)*c.pageSize]
}

func (c *Cache) hash(salt Salt, parent int32, tokens []int32) uint64 {
	h := mix(c.seed, uint64(uint32(parent)))
	if parent == none {
		h = mix(mix(h, salt[0]), salt[1])
	}
	for _, t := range tokens {
		h = mix(h, uint64(uint32(t)))
	}
	return h
}

// mix is one round of the 64-bit finaliser of MurmurHash3 over a sum.
func mix(h, v uint64) uint64 {
	h += v + 0x9E3779B97F4A7C15
	h = (h ^ h>>33) * 0xFF51AFD7ED558CCD
	return h ^ h>>29
}

// lru is a binary heap of pages by last use, oldest first, in which each page's place is known. Ties go to the lower page, so
// that runs can be repeated.
type lru struct {
	nodes []node
	heap  []int32
	at    []int32 // [page] index in heap, none if not in it
}

func (l *lru) init(nodes []node) {
	l.nodes = nodes
	l.heap = make([]int32, 0, len(nodes))
	l.at = make([]int32, len(nodes))
	for i := range l.at {
		l.at[i] = none
	}
}

func (l *lru) oldest() (int32, bool) {
	if len(l.heap) == 0 {
		return none, false
	}
	return l.heap[0], true
}

func (l *lru) add(page int32) {
	l.at[page] = int32(len(l.heap))
	l.heap = append(l.heap, page)
	l.up(len(l.heap) - 1)
}

// remove takes page out if it is in.
func (l *lru) remove(page int32) {
	i := int(l.at[page])
	if i < 0 {
		return
	}
	last := len(l.heap) - 1
	l.swap(i, last)
	l.heap = l.heap[:last]
	l.at[page] = none
	if i < last {
		l.down(i)
		l.up(i)
	}
}

// fix restores the order after page was used.
func (l *lru) fix(page int32) {
	if i := int(l.at[page]); i >= 0 {
		l.down(i)
	}
}

func (l *lru) less(i, j int) bool {
	a, b := l.heap[i], l.heap[j]
	if l.nodes[a].used != l.nodes[b].used {
		return l.nodes[a].used < l.nodes[b].used
	}
	return a < b
}

func (l *lru) swap(i, j int) {
	l.heap[i], l.heap[j] = l.heap[j], l.heap[i]
	l.at[l.heap[i]], l.at[l.heap[j]] = int32(i), int32(j)
}

func (l *lru) up(i int) {
	for i > 0 && l.less(i, (i-1)/2) {
		l.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (l *lru) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(l.heap) {
			return
		}
		if child+1 < len(l.heap) && l.less(child+1, child) {
			child++
		}
		if !l.less(child, i) {
			return
		}
		l.swap(i, child)
		i = child
	}
}
