package model

import "math"

// rope reads rope_parameters, into which canonical has moved the older spellings.
func rope(s *source, c *Config) error {
	v := get[map[string]any](s.values, "rope_parameters", nil)
	r := RoPE{Theta: get(v, "rope_theta", 10000.0), Factor: 1, AttentionFactor: 1, FreqFactors: get[[]float64](v, ggufFreqFactors, nil)}
	scaling := get(v, "rope_type", "default")
	const factor, original = "rope_parameters.factor", "rope_parameters.original_max_position_embeddings"
	if scaling != "default" {
		var ok bool
		r.Scaling = scaling
		if r.Factor, ok = v["factor"].(float64); !ok {
			return s.errorf(s.blame(factor, "rope_parameters.rope_type"), "missing with rope_type %s: want a number of at least 1", scaling)
		}
	}
	switch scaling {
	case "linear":
		// The file's limit is the pretrained one, as the field reads it: scaled positions reach further.
		c.MaxPositions = scaled(c.MaxPositions, r.Factor)
	case "llama3":
		r.LowFreqFactor = get(v, "low_freq_factor", 1.0)
		r.HighFreqFactor = get(v, "high_freq_factor", 4.0)
		r.OriginalMaxPositions = get(v, "original_max_position_embeddings", c.MaxPositions)
		if r.LowFreqFactor >= r.HighFreqFactor {
			return s.errorf(s.blame("rope_parameters.low_freq_factor", "rope_parameters.high_freq_factor"),
				"low_freq_factor %g is not below high_freq_factor %g: want it lower", r.LowFreqFactor, r.HighFreqFactor)
		}
	case "yarn":
		r.BetaFast = orDefault(get(v, "beta_fast", 0.0), 32)
		r.BetaSlow = orDefault(get(v, "beta_slow", 0.0), 1)
		r.Truncate = get(v, "truncate", true)
		r.OriginalMaxPositions = get(v, "original_max_position_embeddings", c.MaxPositions)
		r.AttentionFactor = get(v, "attention_factor", yarnAttention(r.Factor, get(v, "mscale", 0.0), get(v, "mscale_all_dim", 0.0)))
		c.MaxPositions = max(c.MaxPositions, scaled(r.OriginalMaxPositions, r.Factor))
		if r.Theta <= 1 {
			return s.errorf("rope_parameters.rope_theta", "%g with yarn: want more than 1", r.Theta)
		}
	}
	if n := len(r.FreqFactors); n != 0 && n != c.HeadDim/2 {
		return s.errorf("rope_parameters."+ggufFreqFactors, "%d factors for heads of %d elements: want %d", n, c.HeadDim, c.HeadDim/2)
	}
	c.RoPE = r
	return nil
}

func scaled(positions int, factor float64) int {
	return int(min(float64(positions)*factor, maxPositions))
}

func orDefault(v, def float64) float64 {
	if v == 0 {
		return def
	}
	return v
}

// yarnAttention is what cos and sin are multiplied by where the file does not say. Source: arXiv:2309.00071, section 3.4; the
// two mscales are DeepSeek's generalisation.
func yarnAttention(factor, mscale, mscaleAllDim float64) float64 {
	grow := func(m float64) float64 {
		if factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(factor) + 1
	}
	if mscale != 0 && mscaleAllDim != 0 {
		return grow(mscale) / grow(mscaleAllDim)
	}
	return grow(1)
}

// InvFreq returns the inverse frequencies, scaling included, [HeadDim/2]: at position p, element i of a head and element
// i+HeadDim/2 turn by p*InvFreq[i] radians. Both backends make their tables of cos and sin from it, times AttentionFactor.
func (c *Config) InvFreq() []float64 {
	r, half := &c.RoPE, c.HeadDim/2
	freq := make([]float64, half)
	for i := range freq {
		freq[i] = math.Pow(r.Theta, -float64(2*i)/float64(c.HeadDim))
	}
	switch r.Scaling {
	case "linear":
		for i := range freq {
			freq[i] /= r.Factor
		}
	case "llama3":
		for i, f := range freq {
			freq[i] = r.llama3(f)
		}
	case "yarn":
		low, high := r.yarnRange(c.HeadDim)
		for i, f := range freq {
			interpolated := min(max((float64(i)-low)/(high-low), 0), 1)
			freq[i] = f/r.Factor*interpolated + f*(1-interpolated)
		}
	}
	for i, factor := range r.FreqFactors {
		freq[i] /= factor
	}
	return freq
}

// llama3 divides low frequencies by Factor, keeps high ones and blends between.
func (r *RoPE) llama3(f float64) float64 {
	turns := float64(r.OriginalMaxPositions) * f / (2 * math.Pi) // in the pretrained context
	switch {
	case turns < r.LowFreqFactor:
		return f / r.Factor
	case turns > r.HighFreqFactor:
		return f
	}
	smooth := (turns - r.LowFreqFactor) / (r.HighFreqFactor - r.LowFreqFactor)
	return (1-smooth)*f/r.Factor + smooth*f
}

// yarnRange returns the dimensions between which interpolation fades in: those that turn BetaFast and BetaSlow times in the
// pretrained context.
func (r *RoPE) yarnRange(headDim int) (low, high float64) {
	dimension := func(turns float64) float64 {
		return float64(headDim) * math.Log(float64(r.OriginalMaxPositions)/(turns*2*math.Pi)) / (2 * math.Log(r.Theta))
	}
	low, high = dimension(r.BetaFast), dimension(r.BetaSlow)
	if r.Truncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(headDim-1))
	if low == high {
		high += 0.001 // no division by zero
	}
	return low, high
}
