package kvcache

import "fmt"

// Check audits the books against the page tables of all sequences that hold pages: reference counts, the free list, the tree
// and the order of reclaiming. It returns the first contradiction. It costs time in proportion to the cache: for tests and the
// build tag invariants.
func (c *Cache) Check(tables [][]int32) error {
	want := make([]int32, len(c.refs))
	for s, table := range tables {
		for i, page := range table {
			if page < 0 || int(page) >= len(c.refs) {
				return fmt.Errorf("sequence %d holds page %d of %d", s, page, len(c.refs))
			}
			want[page]++
			if !c.isNode(page) && want[page] > 1 {
				return fmt.Errorf("page %d is written by two sequences", page)
			}
			if c.isNode(page) {
				if parent := c.nodes[page].parent; i == 0 && parent != none || i > 0 && parent != table[i-1] {
					return fmt.Errorf("sequence %d holds page %d of the tree without its parent %d", s, page, parent)
				}
			}
		}
	}
	free := make([]bool, len(c.refs))
	for _, page := range c.free {
		if free[page] {
			return fmt.Errorf("page %d is free twice", page)
		}
		free[page] = true
	}
	inTree, idle := 0, 0
	for p := range c.refs {
		page := int32(p)
		if c.isNode(page) {
			want[page]++
			inTree++
			if want[page] == 1 {
				idle++
			}
		}
		if c.refs[page] != want[page] {
			return fmt.Errorf("page %d has a count of %d and %d holders", page, c.refs[page], want[page])
		}
		if free[page] != (want[page] == 0) {
			return fmt.Errorf("page %d has %d holders and is in the free list: %t", page, want[page], free[page])
		}
	}
	if inTree != c.inTree || idle != c.idle {
		return fmt.Errorf("tree has %d pages, %d of them idle; the books say %d and %d", inTree, idle, c.inTree, c.idle)
	}
	if c.prefix {
		return c.checkTree()
	}
	return nil
}

func (c *Cache) checkTree() error {
	children := make([]int32, len(c.nodes))
	for p := range c.nodes {
		n, page := &c.nodes[p], int32(p)
		if !n.inTree {
			continue
		}
		if n.parent != none {
			if !c.nodes[n.parent].inTree {
				return fmt.Errorf("page %d hangs below page %d, which is not in the tree", page, n.parent)
			}
			if c.nodes[n.parent].used < n.used {
				return fmt.Errorf("page %d was used after its parent %d", page, n.parent)
			}
			children[n.parent]++
		}
		if found := c.find(n.salt, n.parent, c.tokensOf(page)); found != page {
			return fmt.Errorf("page %d is in the tree but page %d is found in its place", page, found)
		}
	}
	for p := range c.nodes {
		n, page := &c.nodes[p], int32(p)
		if n.inTree && n.children != children[page] {
			return fmt.Errorf("page %d has %d children, not %d", page, children[page], n.children)
		}
		reclaimable := n.inTree && c.refs[page] == 1 && children[page] == 0
		if at := c.leaves.at[page]; reclaimable != (at >= 0) {
			return fmt.Errorf("page %d could be reclaimed: %t, is listed: %t", page, reclaimable, at >= 0)
		} else if at > 0 && c.leaves.less(int(at), (int(at)-1)/2) {
			return fmt.Errorf("page %d is out of the order of last use", page)
		}
	}
	return nil
}
