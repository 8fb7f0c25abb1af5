//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// check tells what is wrong with a batch, before anything of it is run: what no backend takes, and this one's own limits. It changes
// nothing.
func (b *Backend) check(batch *backend.Batch) error {
	if err := b.checker.Check(batch); err != nil {
		return err
	}
	for i := range batch.Rows {
		s := batch.Rows[i].Start
		if s == nil {
			continue
		}
		if n := s.Sampling.TopLogProbs; n > maxTop {
			return fmt.Errorf("row %d: %d top log probabilities: the CUDA backend gives up to %d", i, n, maxTop)
		}
		if n := len(s.Sampling.Bias); n > maxBias {
			return fmt.Errorf("row %d: %d biased tokens: the CUDA backend takes up to %d", i, n, maxBias)
		}
	}
	return nil
}
