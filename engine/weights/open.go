package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/tokamak-engine/tokamak/engine/model"
)

const (
	singleFile = "model.safetensors"
	indexFile  = "model.safetensors.index.json"
)

// Open maps the safetensors of a Hugging Face directory, one file or shards with an index, and returns the tensors cfg needs,
// their names, shapes and types verified. On an error nothing stays open.
func Open(dir string, cfg *model.Config) (*Store, error) {
	s := &Store{tensors: map[string]*Tensor{}}
	if err := s.read(dir, cfg.Quantization, "", cfg.Tensors()); err != nil {
		return nil, err
	}
	return s, nil
}

// read adds the wanted tensors of a directory's files, with prefix before their names. On an error it has added none.
func (s *Store) read(dir string, quant *model.Quantization, prefix string, wanted []model.Tensor) (err error) {
	d := &directory{path: dir, quant: quant, shards: map[string]*safetensors{}}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := d.readIndex(); err != nil {
		return err
	}
	found := make([]*Tensor, len(wanted))
	for i, want := range wanted {
		if found[i], err = d.tensor(want); err != nil {
			return err
		}
	}
	for i, want := range wanted {
		found[i].Name = prefix + want.Name
		s.tensors[found[i].Name] = found[i]
	}
	d.repackAll()
	for _, shard := range d.shards {
		s.files = append(s.files, shard.file)
	}
	return nil
}

// directory is a model's files, opened as tensors ask for them.
type directory struct {
	path   string
	quant  *model.Quantization
	index  map[string]string // tensor -> shard; nil if there is one file
	shards map[string]*safetensors
	repack []func() // fill tensors that are not stored as they are wanted; they cannot fail
}

func (d *directory) readIndex() error {
	path := filepath.Join(d.path, indexFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(d.path, singleFile)); err != nil {
			return errorf(d.path, "", "neither %s nor %s: want a directory with safetensors, a GGUF file, or --load-format dummy", singleFile, indexFile)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return errorf(path, "", "malformed index: %v", err)
	}
	if len(index.WeightMap) == 0 {
		return errorf(path, "", "no weight_map: want one shard name for each tensor")
	}
	d.index = index.WeightMap
	return nil
}

// entry finds a tensor; ok is false if no file has it.
func (d *directory) entry(name string) (shard *safetensors, entry safetensorsEntry, ok bool, err error) {
	file := singleFile
	if d.index != nil {
		if file, ok = d.index[name]; !ok {
			return nil, entry, false, nil
		}
	}
	shard, err = d.shard(file)
	if err != nil {
		return nil, entry, false, err
	}
	entry, ok = shard.entries[name]
	if !ok && d.index != nil {
		return nil, entry, false, errorf(shard.path, name, "not in this shard, although %s says so", indexFile)
	}
	return shard, entry, ok, nil
}

func (d *directory) shard(name string) (*safetensors, error) {
	if shard, ok := d.shards[name]; ok {
		return shard, nil
	}
	if name != filepath.Base(name) || !filepath.IsLocal(name) {
		return nil, errorf(filepath.Join(d.path, indexFile), "", "shard %q: want the name of a file beside it", name)
	}
	path := filepath.Join(d.path, name)
	shard, err := openSafetensors(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(path, "", "shard is missing, %s names it: download it again", indexFile)
	}
	if err != nil {
		return nil, err
	}
	d.shards[name] = shard
	return shard, nil
}

// tensor makes a tensor of what the files hold for the one the model wants: quantised where they have it so, or plain.
func (d *directory) tensor(want model.Tensor) (*Tensor, error) {
	t, err := d.quantised(want)
	if t == nil && err == nil {
		t, err = d.plain(want)
	}
	if err != nil {
		return nil, err
	}
	return t, d.cacheScale(t)
}

// plain makes a tensor that is stored as it is.
func (d *directory) plain(want model.Tensor) (*Tensor, error) {
	shard, entry, ok, err := d.entry(want.Name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, d.missing(want)
	}
	if err := checkShape(shard.path, want.Name, entry.shape, want.Shape); err != nil {
		return nil, err
	}
	dtype, ok := plainTypes[entry.dtype]
	if want.Name == model.DraftVocabularyMap {
		if dtype, ok = I64, entry.dtype == I64.String(); !ok {
			return nil, errorf(shard.path, want.Name, "type %s is not supported: want I64", entry.dtype)
		}
	}
	if !ok {
		hint := ""
		if d.quant == nil {
			hint = "; a quantised checkpoint's config.json must have a quantization_config"
		}
		return nil, errorf(shard.path, want.Name, "type %s is not supported: want F32, F16 or BF16%s", entry.dtype, hint)
	}
	return &Tensor{Name: want.Name, DType: dtype, Shape: want.Shape, Data: entry.data}, nil
}

var plainTypes = map[string]DType{"F32": F32, "F16": F16, "BF16": BF16}

func (d *directory) missing(want model.Tensor) error {
	hint := ""
	if strings.HasPrefix(want.Name, "lm_head.") {
		hint = `; if the head is the embedding matrix, config.json must say "tie_word_embeddings": true`
	}
	return errorf(d.path, want.Name, "missing, the model's config asks for it with shape %v%s", want.Shape, hint)
}

// repackAll runs what was put off, on every processor: the 3.5 GB of an AWQ model of 8B parameters take some 8 seconds on one.
func (d *directory) repackAll() {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, fill := range d.repack {
		group.Go(func() error {
			fill()
			return nil
		})
	}
	_ = group.Wait() // none of them returns an error
}

// close lets go of the shards after an error, which is the one to tell.
func (d *directory) close() {
	for _, shard := range d.shards {
		_ = shard.file.release()
	}
}
