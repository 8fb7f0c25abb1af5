// Package kvcache keeps the books of the KV cache: which page is free, how many hold it, and which tokens' keys and values it
// has. It deals in page numbers and token ids only; the keys and values lie in the backend.
//
// A page is held by sequences and, once it is full, by the prefix tree: its reference count is the number of both. The tree's
// nodes are whole pages, found by their parent and their tokens, and below the root by a salt, so that nobody can find a page of
// another salt. A page that only the tree holds can be reclaimed; when no page is free the least recently used leaf is.
//
// Two rules make the count of reclaimable pages exact: a sequence that holds a page of the tree holds the pages above it, and
// a sequence's own page whose twin is in the tree already stays out of the tree, with all that follow it, until the sequence
// lets go.
package kvcache
