package kvcache

// Salt keeps prefixes apart: pages are found again only under the salt they were inserted with.
type Salt [2]uint64

// none stands for no page: the root as a parent, the end of a chain.
const none int32 = -1

// Cache is a pool of pages with a prefix tree over them. It is not safe for concurrent use.
type Cache struct {
	pageSize int
	prefix   bool
	seed     uint64

	refs []int32 // [page] holders: sequences, and the tree
	free []int32 // stack of pages with no holder

	nodes     []node  // [page] the page's place in the tree
	tokens    []int32 // [page][pageSize] of pages in the tree
	buckets   []int32 // hash of parent and tokens -> first page of a chain
	leaves    lru     // pages that could be reclaimed now
	clock     uint64  // ascends with every release
	inTree    int     // pages in the tree
	idle      int     // of these, held by the tree alone
	evictions uint64
}

type node struct {
	inTree   bool
	parent   int32 // page, none below the root
	salt     Salt  // of pages below the root
	next     int32 // in the bucket's chain
	hash     uint64
	children int32
	used     uint64 // clock of the last use
}

// New returns a cache of numPages pages of pageSize tokens, all free. With prefix false it finds and keeps nothing. seed makes
// the tree's hashes unpredictable to those who choose tokens.
func New(numPages, pageSize int, prefix bool, seed uint64) *Cache {
	c := &Cache{
		pageSize: pageSize, prefix: prefix, seed: seed,
		refs: make([]int32, numPages), free: make([]int32, numPages),
	}
	for i := range c.free {
		c.free[i] = int32(numPages - 1 - i) // page 0 comes first
	}
	if prefix {
		numBuckets := 1
		for numBuckets < numPages {
			numBuckets *= 2
		}
		c.nodes = make([]node, numPages)
		c.tokens = make([]int32, numPages*pageSize)
		c.buckets = make([]int32, numBuckets)
		for i := range c.buckets {
			c.buckets[i] = none
		}
		c.leaves.init(c.nodes)
	}
	return c
}

// PageSize is the number of tokens of a page.
func (c *Cache) PageSize() int { return c.pageSize }

// NumPages is the number of pages, free or not.
func (c *Cache) NumPages() int { return len(c.refs) }

// Available is the number of pages that Alloc can give: free ones and those only the tree holds.
func (c *Cache) Available() int { return len(c.free) + c.idle }

// Cached is the number of pages that only the tree holds.
func (c *Cache) Cached() int { return c.idle }

// Evictions counts pages reclaimed from the tree.
func (c *Cache) Evictions() uint64 { return c.evictions }

// Holders is the reference count of page.
func (c *Cache) Holders(page int32) int { return int(c.refs[page]) }

// Alloc hands out a page with one holder, the caller. It reclaims the least recently used leaf of the tree if no page is free,
// and returns false if there is none either.
func (c *Cache) Alloc() (int32, bool) {
	if len(c.free) == 0 && !c.evict() {
		return none, false
	}
	page := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.refs[page] = 1
	return page, true
}

// Match finds the longest run of whole pages that hold the beginning of tokens, makes the caller a holder of each and appends
// them to dst.
func (c *Cache) Match(salt Salt, tokens []int32, dst []int32) []int32 {
	if !c.prefix {
		return dst
	}
	parent := none
	for ; len(tokens) >= c.pageSize; tokens = tokens[c.pageSize:] {
		page := c.find(salt, parent, tokens[:c.pageSize])
		if page == none {
			break
		}
		c.hold(page) // its use is noted when it is let go: until then it cannot be reclaimed
		dst = append(dst, page)
		parent = page
	}
	return dst
}

// MatchLen is the number of tokens that Match would find; it changes nothing.
func (c *Cache) MatchLen(salt Salt, tokens []int32) int {
	if !c.prefix {
		return 0
	}
	found, parent := 0, none
	for ; len(tokens) >= c.pageSize; tokens = tokens[c.pageSize:] {
		if parent = c.find(salt, parent, tokens[:c.pageSize]); parent == none {
			break
		}
		found += c.pageSize
	}
	return found
}

// Share puts whole pages of a running sequence into the tree, so that others find them. pages holds tokens, which must have
// been computed or be sure to be before any other reader's step; the first shared pages are in the tree already. It returns the
// new number of pages at the sequence's beginning that are in the tree, and stops short at a page whose twin is there.
func (c *Cache) Share(salt Salt, tokens []int32, pages []int32, shared int) int {
	if !c.prefix {
		return 0
	}
	full := len(tokens) / c.pageSize
	for ; shared < full; shared++ {
		parent := none
		if shared > 0 {
			parent = pages[shared-1]
		}
		page := tokens[shared*c.pageSize : (shared+1)*c.pageSize]
		if c.find(salt, parent, page) != none {
			break
		}
		c.insert(salt, parent, page, pages[shared])
	}
	return shared
}

// Release lets go of a sequence's pages. Its whole pages, as far as tokens goes, stay in the tree until they are reclaimed; the
// others are free at once. tokens are those whose keys and values are in the pages.
func (c *Cache) Release(salt Salt, tokens []int32, pages []int32) {
	if c.prefix {
		c.clock++
		parent := none
		for i := range len(tokens) / c.pageSize {
			page := tokens[i*c.pageSize : (i+1)*c.pageSize]
			child := c.find(salt, parent, page)
			if child == none {
				child = pages[i]
				c.insert(salt, parent, page, child)
			}
			c.touch(child)
			parent = child
		}
	}
	for _, page := range pages {
		c.drop(page)
	}
}

// Flush empties the tree of all that no sequence holds.
func (c *Cache) Flush() {
	if !c.prefix {
		return
	}
	before := c.evictions
	for c.evict() {
	}
	c.evictions = before
}

func (c *Cache) hold(page int32) {
	if c.refs[page] == 1 && c.isNode(page) {
		c.idle--
		c.leaves.remove(page)
	}
	c.refs[page]++
}

func (c *Cache) drop(page int32) {
	c.refs[page]--
	switch {
	case c.refs[page] == 0:
		c.free = append(c.free, page)
	case c.refs[page] == 1 && c.isNode(page):
		c.idle++
		if c.nodes[page].children == 0 {
			c.leaves.add(page)
		}
	}
}

func (c *Cache) isNode(page int32) bool { return c.prefix && c.nodes[page].inTree }

// touch marks a use. A page in leaves keeps its place until it is added again, so the order there is repaired.
func (c *Cache) touch(page int32) {
	c.nodes[page].used = c.clock
	c.leaves.fix(page)
}
