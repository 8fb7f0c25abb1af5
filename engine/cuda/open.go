//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Defaults of backend.Options.
const (
	defaultMaxRows     = 256
	defaultMaxTokens   = 8192
	defaultPageSize    = 64
	defaultMemFraction = 0.88
	minCapability      = 80
)

// CUDAError is a failed call of the driver or a kernel's fault, which is final for the backend.
type CUDAError = driver.CUDAError

// Available tells why no GPU of this machine can be used; nil if one can.
func Available() error {
	_, err := pickDevice()
	return err
}

// pickDevice returns the first device that the engine runs on.
func pickDevice() (driver.Device, error) {
	devices, err := driver.Devices()
	if err != nil {
		return driver.Device{}, err
	}
	compiler, err := driver.OpenCompiler()
	if err != nil {
		return driver.Device{}, err
	}
	return choose(devices, driver.DriverVersion(), compiler)
}

// choose is pickDevice's decision. driverVersion is 1000*major + 10*minor.
func choose(devices []driver.Device, driverVersion int, compiler *driver.Compiler) (driver.Device, error) {
	var names []string
	for _, d := range devices {
		if d.Major*10+d.Minor >= minCapability {
			if driverVersion/1000 < compiler.Major {
				return d, fmt.Errorf("the driver supports CUDA %d.%d, but %s makes code for CUDA %d: update the NVIDIA driver, or set TOKAMAK_NVRTC to an older libnvrtc",
					driverVersion/1000, driverVersion%1000/10, compiler.Path, compiler.Major)
			}
			return d, nil
		}
		names = append(names, fmt.Sprintf("%s has %d.%d", d.Name, d.Major, d.Minor))
	}
	return driver.Device{}, fmt.Errorf("compute capability %d.%d is needed: %s", minCapability/10, minCapability%10, strings.Join(names, ", "))
}

// checkModel tells what of a model the kernels cannot run.
func checkModel(c *model.Config) error {
	var problem string
	switch {
	case c.HiddenSize%8 != 0 || c.IntermediateSize%8 != 0:
		problem = fmt.Sprintf("hidden size %d and intermediate size %d (multiples of 8 are)", c.HiddenSize, c.IntermediateSize)
	case c.HeadDim%16 != 0 || c.HeadDim > 128:
		problem = fmt.Sprintf("heads of %d (multiples of 16 up to 128 are)", c.HeadDim)
	case c.NumHeads%c.NumKVHeads != 0 || c.NumHeads/c.NumKVHeads > 8:
		problem = fmt.Sprintf("%d query heads for %d KV heads (up to 8 each are)", c.NumHeads, c.NumKVHeads)
	default:
		return nil
	}
	return fmt.Errorf("%s: not supported by the CUDA kernels: %s; use --device cpu", c.Architecture, problem)
}

// checkOptions fills in o's defaults.
func checkOptions(c *model.Config, o *backend.Options) error {
	for _, f := range []struct {
		name  string
		field *int
		value int
	}{
		{"rows", &o.MaxRows, defaultMaxRows}, {"context", &o.MaxContext, c.MaxPositions}, {"page size", &o.PageSize, defaultPageSize},
		{"tokens of a step", &o.MaxTokens, max(defaultMaxTokens, o.MaxRows)}, {"KV pages", &o.NumPages, 0}, {"rows and draft tokens of a step", &o.MaxVerify, 0},
	} {
		if *f.field < 0 {
			return fmt.Errorf("%s %d: want at least 1, or 0 for the default", f.name, *f.field)
		}
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	if o.MemFraction == 0 {
		o.MemFraction = defaultMemFraction
	}
	switch last := buckets[len(buckets)-1]; {
	case o.MaxContext > c.MaxPositions:
		return fmt.Errorf("context of %d tokens: the model allows %d", o.MaxContext, c.MaxPositions)
	case o.MaxTokens < o.MaxRows:
		return fmt.Errorf("%d tokens of a step: want at least one for each of its %d rows", o.MaxTokens, o.MaxRows)
	case max(o.MaxRows, o.MaxVerify) > last:
		return fmt.Errorf("%d rows, %d of them and draft tokens: the CUDA backend takes up to %d", o.MaxRows, o.MaxVerify, last)
	case o.PageSize != 16 && o.PageSize != 32 && o.PageSize != 64:
		return fmt.Errorf("page size %d: want 16, 32 or 64", o.PageSize)
	case !(o.MemFraction > 0 && o.MemFraction <= 1):
		return fmt.Errorf("memory fraction %v: want a number in 0..1", o.MemFraction)
	case o.DType != "" && o.DType != "auto" && o.DType != "bfloat16":
		return fmt.Errorf("dtype %q: the CUDA backend computes in bfloat16; use --device cpu for others", o.DType)
	case o.KVDType != "" && o.KVDType != "auto" && o.KVDType != "bfloat16" && o.KVDType != kvFP8:
		return fmt.Errorf("KV cache type %q: the CUDA backend has auto, bfloat16 and %s", o.KVDType, kvFP8)
	case o.Quantization != "" && o.Quantization != "fp8" && o.Quantization != "int4":
		return fmt.Errorf("quantization %q: the CUDA backend has fp8 and int4", o.Quantization)
	}
	return nil
}

// Open brings cfg's weights to the GPU and gets its kernels ready. w is not needed any more when it returns. It says what is
// missing where there is no usable device, and returns a *[MemoryError], before anything is allocated, where there is too
// little memory. It never falls back to the CPU.
func Open(cfg *model.Config, w *weights.Store, o backend.Options) (*Backend, error) {
	return openWith(cfg, w, o, settings{})
}

// settings are what only tests change.
type settings struct {
	noPDL    bool
	blasOnly bool // products of more than 16 tokens are all cuBLASLt's, none gemm_sm90's
	bare     bool // without cuBLASLt, whose products are not to be asked for, and without the probe of the matrix units: racecheck can follow neither
	prefixes bool // decode rows that begin with the same pages read them together: off until TestAttnPrefix has passed on a GPU
	stamps   bool // kernels note when they began: see timeline_test.go
	delays   int  // nanoseconds at most that warps sleep where kernels meet: see races_test.go
	cacheDir string
	// edit changes a kernel's source before it is compiled; nil leaves all as they are.
	edit func(file, source string) string
}

func openWith(cfg *model.Config, w *weights.Store, o backend.Options, set settings) (*Backend, error) {
	if err := checkModel(cfg); err != nil {
		return nil, err
	}
	if err := checkOptions(cfg, &o); err != nil {
		return nil, err
	}
	found, err := pickDevice()
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	context, err := driver.Open(found)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", found.Name, err)
	}
	b := &Backend{context: context, launched: 1, awaited: 1, noGraph: o.DisableGraph, graphs: map[stepShape]*driver.Graph{}, seen: map[stepShape]int{}, eager: map[stepShape][]node{}}
	b.device = device{Name: found.Name, SM: found.Major*10 + found.Minor, SMs: found.SMs, L2Bytes: found.L2Bytes, MaxSmem: found.SharedMemory, TotalMem: found.TotalMemory}
	if err := b.open(cfg, w, o, set); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Backend) open(cfg *model.Config, w *weights.Store, o backend.Options, set settings) (err error) {
	began := time.Now()
	s := newShape(cfg)
	s.Deterministic, s.KVFP8, s.QuantizeFP8 = o.Deterministic, o.KVDType == kvFP8, o.Quantization == "fp8"
	s.KeepInt4 = o.Quantization == "int4"
	s.Prefixes = set.prefixes
	s.MoE.Uniform = o.SimulateUniformExperts
	if err := checkMixture(b.device, s); err != nil {
		return fmt.Errorf("%s: %w", cfg.Architecture, err)
	}
	s.Page, s.MaxContext, s.MaxPages = o.PageSize, o.MaxContext, (o.MaxContext+o.PageSize-1)/o.PageSize
	s.MaxVerify, s.MaxRows = o.MaxVerify, bucketFor(max(o.MaxRows, o.MaxVerify))
	s.MaxTokens = pad(max(o.MaxTokens, s.MaxRows), tokenPad)
	layers := make([]layerWeights, cfg.NumLayers)
	if s.KVFP8 {
		for i := range layers {
			layers[i].KV = cacheScales(w, i)
		}
	}
	weightPlaces, parts, err := weightArena(cfg, s, w, &b.buffers, layers)
	if err != nil {
		return err
	}
	s.Dequantised = s.dequantised(layers)
	if err := s.roomForFP8(b.device, layers); err != nil {
		return err
	}
	workPlaces := workArena(b.device, s, &b.buffers)
	if cfg.DraftHead != nil {
		if b.head, err = planDraftHead(cfg.DraftHead, w, b.device, s, &b.buffers); err != nil {
			return err
		}
		s.DraftPageBytes = b.head.layer.shape.pageBytes()
	}
	free, total, err := b.context.Memory()
	if err != nil {
		return err
	}
	if s.NumPages, err = sizePages(s, o, weightPlaces.size+b.head.weightBytes(), workPlaces.size+b.head.workBytes(), free, total); err != nil {
		return err
	}
	b.shape = s
	kvPlaces := &arena{}
	kvPlaces.take(&b.buffers.KV, s.layerKVBytes()*int64(s.Layers))
	for _, a := range []*arena{weightPlaces, workPlaces, kvPlaces} {
		base, err := b.alloc(a.size)
		if err != nil {
			return fmt.Errorf("allocate %d MiB of GPU memory (%d MiB were free at start): %w", a.size>>20, free>>20, err)
		}
		a.bind(base)
	}
	if s.TiedHead {
		b.buffers.Head = weight{Data: b.buffers.Embed}
	}
	if b.stream, err = driver.NewStream(); err != nil {
		return err
	}
	if err := b.openPinned(); err != nil {
		return err
	}
	b.planner = &planner{device: b.device, shape: s, buffers: &b.buffers, layers: layers, noPDL: set.noPDL, blasOnly: set.blasOnly}
	copied := b.buffers
	copied.Plan = [2]ptr{copied.PlanCopy, copied.PlanCopy}
	b.copied = &planner{device: b.device, shape: s, buffers: &copied, layers: layers, noPDL: set.noPDL, blasOnly: set.blasOnly}
	b.planner.captures, b.copied.captures = b.head, b.head
	b.compiler = newCompiler(b.device, s, openCache(set.cacheDir))
	if set.stamps || trace.Stamps.Load() {
		b.compiler.defines = append(b.compiler.defines, "STAMPS=1")
		if b.stamps, err = newStamps(); err != nil {
			return err
		}
	}
	if set.delays > 0 {
		b.compiler.defines = append(b.compiler.defines, fmt.Sprintf("DELAYS=%d", set.delays))
	}
	b.compiler.edit = set.edit
	b.functions, b.modules = map[unit]*driver.Function{}, map[unit]driver.Module{}
	var warm errgroup.Group
	if !set.bare {
		warm.Go(b.openBlas)
	}
	if err := errors.Join(b.load(parts, o.Progress), warm.Wait()); err != nil {
		return err
	}
	if err := b.prepare(cfg); err != nil {
		return err
	}
	bandwidth, err := b.readBandwidth(weightPlaces.size, kvPlaces.size)
	if err != nil {
		return err
	}
	var bf16FLOPs, fp8FLOPs *float64
	if !set.bare {
		if bf16FLOPs, fp8FLOPs, err = b.tensorFLOPs(); err != nil {
			return err
		}
	}
	weightBytes := weightPlaces.size
	if !s.TiedHead {
		weightBytes -= int64(s.Vocab) * int64(s.Hidden) * bf16Bytes // the embedding is looked up, not read
	}
	b.info = backend.Info{
		Name: "cuda", Device: b.device.Name, DType: layers[0].WGU.Format.String(), VocabSize: s.Vocab, MaxContext: o.MaxContext, MaxRows: o.MaxRows, MaxTokens: o.MaxTokens,
		PageSize: s.Page, NumPages: s.NumPages, MaxVerify: s.MaxVerify, WeightBytes: weightBytes, KVBytesPerToken: int64(2*s.kvDim()*s.Layers) * s.kvBytes(), ReadBandwidth: bandwidth,
	}
	b.info.BF16FLOPs, b.info.FP8FLOPs = bf16FLOPs, fp8FLOPs
	s.MoE.info(&b.info, s)
	b.slots, b.prefixes.pays, b.mixedGraphs = make([]slot, s.MaxRows), prefixPays, o.MixedTokens > 0
	b.info.DraftHead = b.head != nil
	b.checker = backend.NewChecker(b.info)
	if b.head != nil {
		if err := b.head.open(b, set); err != nil {
			return err
		}
	}
	if err := b.decodeGraphs(); err != nil {
		return err
	}
	b.openTime = time.Since(began)
	return nil
}

// decodeGraphs captures the graph of every number of decode rows, with drafts among them too: the first step of a kind would else be late
// by tens of milliseconds.
func (b *Backend) decodeGraphs() error {
	for _, n := range buckets {
		for _, drafts := range []bool{false, true} {
			if b.noGraph || n > b.shape.MaxRows || drafts && n > b.shape.MaxVerify {
				continue
			}
			if _, err := b.graph(b.padded(stepShape{rows: n, decode: n, tokens: n, samples: n, drafts: drafts})); err != nil {
				return err
			}
		}
	}
	return nil
}

// load compiles the kernels while the weights are on their way.
func (b *Backend) load(parts []part, progress func(string, float64, float64, string)) error {
	var mu sync.Mutex
	report := func(phase string, done, total float64, unit string) {
		if progress != nil {
			mu.Lock()
			defer mu.Unlock()
			progress(phase, done, total, unit)
		}
	}
	// What makes weights comes first.
	early := []unit{{File: "fill.cu", Symbol: "fill"}, {File: "rope_table.cu", Symbol: "rope_table"}}
	for way := range readProbes {
		early = append(early, readProbeOp(b.device, 0, 0, 0, way).Unit)
	}
	code, err := b.compiler.all(early, nil)
	if err != nil {
		return err
	}
	b.code = code
	units := append(b.planner.units(), flopProbeUnits(b.device)...)
	var group errgroup.Group
	var compiled map[unit][]byte
	group.Go(func() (err error) {
		compiled, err = b.compiler.all(units, func(n int) { report("compile", float64(n), float64(len(units)), "kernels") })
		return err
	})
	uploaded := b.upload(parts, func(done, total float64) { report("upload", done, total, "GiB") })
	if err := errors.Join(uploaded, group.Wait()); err != nil {
		return err
	}
	for u, c := range compiled {
		b.code[u] = c
	}
	return nil
}

// openBlas opens cuBLASLt and lets it load its kernels for the usual sizes, which takes a tenth of a second that a first prompt
// would wait. It runs beside the upload, on a stream of its own; what it computes is of no meaning.
func (b *Backend) openBlas() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := b.context.Bind(); err != nil {
		return err
	}
	var err error
	if b.blas, err = driver.OpenBlasLt(b.buffers.blasWorkspace, blasWorkspaceBytes); err != nil {
		return err
	}
	s, err := driver.NewStream()
	if err != nil {
		return err
	}
	defer s.Destroy()
	for _, tokens := range []int{32, tokenPad, 2 * tokenPad, 512, 2048, b.shape.MaxTokens} {
		if tokens > b.shape.MaxTokens {
			continue
		}
		st := stepShape{rows: 1, tokens: tokens, samples: min(32, b.shape.MaxRows), longest: tokens}
		for _, n := range b.planner.layer(st, 0, b.planner.layers[0]) {
			if n.gemm != nil {
				if err := b.blas.Run(*n.gemm, s); err != nil {
					return err
				}
			}
		}
	}
	return s.Synchronize()
}

// prepare makes the rotary table and clears the state.
func (b *Backend) prepare(cfg *model.Config) error {
	b32 := make([]float32, 0, b.shape.Dim/2)
	for _, f := range cfg.InvFreq() {
		b32 = append(b32, float32(f))
	}
	// The activations are free now: the frequencies go where x will be.
	if err := driver.Write(b.buffers.X, bytesOf(b32)); err != nil {
		return err
	}
	factor := cfg.RoPE.AttentionFactor
	if factor == 0 {
		factor = 1
	}
	if err := b.launch(ropeTableOp(b.device, b.shape, b.buffers.Rope, b.buffers.X, factor), b.stream); err != nil {
		return err
	}
	if b.buffers.W4Arrived != 0 {
		if err := driver.Memset(b.buffers.W4Arrived, 0, 4*w4Counters, b.stream); err != nil {
			return err
		}
	}
	rows := int64(b.shape.MaxRows)
	for _, z := range []struct {
		p     ptr
		bytes int64
	}{
		{b.buffers.Step, 8}, {b.buffers.SlotToken, 4 * rows}, {b.buffers.SlotParam, 56 * rows}, {b.buffers.Counts, b.shape.countBytes()},
		{b.buffers.PageTable, 4 * rows * int64(b.shape.MaxPages)}, {b.buffers.AttnScratch, attnScratchBytes(b.device, b.shape)},
		{b.buffers.HeadScratch, headScratchBytes(b.device, b.shape)}, {b.buffers.Targets, 4 * int64(b.shape.tokenRows())},
	} {
		if err := driver.Memset(z.p, 0, z.bytes, b.stream); err != nil {
			return err
		}
	}
	return b.stream.Synchronize()
}

// readBandwidth measures how fast the device reads memory, bytes a second: the best of several ways, each several times, over at
// least ten times the L2 and up to 4 GiB of what was just allocated. It is nil where too little was.
func (b *Backend) readBandwidth(weightBytes, kvBytes int64) (*float64, error) {
	src, bytes := b.buffers.KV, kvBytes
	if weightBytes > kvBytes {
		src, bytes = b.buffers.Embed, weightBytes
	}
	bytes = min(bytes, 4<<30)
	if bytes < 10*int64(b.device.L2Bytes) {
		return nil, nil
	}
	best := 0.0
	for way := range readProbes {
		probe := readProbeOp(b.device, src, b.buffers.X, bytes, way)
		seconds, err := b.fastest(probe, 6)
		if err != nil {
			return nil, fmt.Errorf("bandwidth probe: %w", err)
		}
		best = max(best, float64(probe.Bytes)/seconds)
	}
	return &best, nil
}
