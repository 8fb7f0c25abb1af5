// Package model turns a model's description (config.json, GGUF metadata) into data: one [Config], whatever the file, and the
// list of tensors it needs. It knows families and shapes; it holds no weights and does no arithmetic on them.
package model

// Config describes a decoder-only transformer. A loaded Config is complete and consistent: every default is filled in.
type Config struct {
	Architecture string // as in config.json: "LlamaForCausalLM", ...
	Family       string // row of the registry: "llama", "mistral", "qwen2", "qwen3"

	HiddenSize       int
	IntermediateSize int
	NumLayers        int
	NumHeads         int // query heads
	NumKVHeads       int // divides NumHeads
	HeadDim          int
	VocabSize        int
	MaxPositions     int // tokens of one sequence
	RMSNormEps       float64
	RoPE             RoPE
	TieEmbeddings    bool // the LM head is the embedding matrix
	QKVBias          bool
	QKNorm           bool // RMSNorm over HeadDim on each query and key head, before RoPE
	SlidingWindow    int  // a token sees itself and the SlidingWindow-1 tokens before it; 0: all before it

	NumExperts          int // 0: dense
	NumExpertsPerToken  int
	MoEIntermediateSize int
	NormTopKProb        bool

	DType string // as stored: "bfloat16", "float16", "float32"
	BOS   []int32
	EOS   []int32 // every id that ends a generation, generation_config.json included

	// Quantization says how the checkpoint's linear layers are stored; nil where they are plain, and for GGUF files, whose
	// tensors say it themselves.
	Quantization *Quantization

	DraftHead *DraftHead // guesses what the model will say; nil: there is none
}

// RoPE holds the rotary embedding's parameters. Heads are rotated in halves (element i with i+HeadDim/2), as Hugging Face
// checkpoints lay them out; GGUF's adjacent-pair layout is undone at load.
type RoPE struct {
	Theta                float64
	Scaling              string // "", "linear", "llama3" or "yarn"
	Factor               float64
	LowFreqFactor        float64 // llama3
	HighFreqFactor       float64 // llama3
	OriginalMaxPositions int     // llama3, yarn
	BetaFast, BetaSlow   float64 // yarn
	AttentionFactor      float64 // yarn: multiplies cos and sin; 1 elsewhere
	Truncate             bool    // yarn: the ramp's ends are rounded to whole dimensions
	// FreqFactors divide the inverse frequencies one by one, [HeadDim/2]; nil: all 1. GGUF files carry llama3 scaling this way.
	FreqFactors []float64
}

// Tensor names one weight under its Hugging Face name with the shape the model needs, row-major: [out, in] for a matrix.
type Tensor struct {
	Name  string
	Shape []int
}
