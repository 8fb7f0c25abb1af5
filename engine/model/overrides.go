package model

import (
	"maps"
	"slices"
)

// overridesSource is how users know the overrides.
const overridesSource = "--json-model-override-args"

// checkOverrides refuses a key of overrides that keys do not know, unless the model's own file has it: such a key is known,
// just not to us.
func checkOverrides(overrides, file map[string]any, keys []key, prefix string) error {
	for _, name := range slices.Sorted(maps.Keys(overrides)) {
		k := find(keys, name)
		if k == nil {
			if _, inFile := file[name]; inFile {
				continue
			}
			near := nearest(name, keys)
			return errorf(overridesSource, prefix+name, "unknown key: the nearest known key is %s%s, %s", prefix, near.name, near.wants())
		}
		inner, isObject := overrides[name].(map[string]any)
		if k.kind == object && isObject {
			innerFile, _ := file[name].(map[string]any)
			if err := checkOverrides(inner, innerFile, k.fields, prefix+name+"."); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge writes overrides into values, objects key by key, everything else whole.
func merge(values, overrides map[string]any) {
	for name, value := range overrides {
		inner, isObject := value.(map[string]any)
		target, hasObject := values[name].(map[string]any)
		if isObject && hasObject {
			merge(target, inner)
			continue
		}
		values[name] = value
	}
}

// spelling remembers the dotted path a value had in its file, by the path it was moved to; errors speak of the former.
type spelling map[string]string

// canonical rewrites the spellings of older and newer files to one, so that an override in either meets a file in the other:
// torch_dtype becomes dtype; rope_theta and rope_scaling move into rope_parameters. A value of the wrong type stays where it
// is, for check to find.
func canonical(values map[string]any) spelling {
	moved := spelling{}
	moved.move(values, "", "torch_dtype", values, "", "dtype")
	moved.move(values, "", "num_local_experts", values, "", "num_experts")

	scaling, hasScaling := values["rope_scaling"]
	scalingKeys, isObject := scaling.(map[string]any)
	if scaling != nil && !isObject {
		return moved
	}
	_, hasTheta := values["rope_theta"]
	rope, hasRope := values["rope_parameters"].(map[string]any)
	if !hasRope {
		if values["rope_parameters"] != nil || !hasScaling && !hasTheta {
			return moved
		}
		rope = map[string]any{}
		if hasScaling && scaling == nil {
			rope["rope_type"] = "default" // an override's way to say: no scaling
		}
		values["rope_parameters"] = rope
	}
	delete(values, "rope_scaling")
	const prefix = "rope_parameters."
	moved.move(rope, prefix, "type", rope, prefix, "rope_type")
	moved.move(scalingKeys, "rope_scaling.", "type", rope, prefix, "rope_type")
	for name := range scalingKeys {
		moved.move(scalingKeys, "rope_scaling.", name, rope, prefix, name)
	}
	moved.move(values, "", "rope_theta", rope, prefix, "rope_theta")
	return moved
}

// move takes a value to its other name, unless that has one already or there is none.
func (s spelling) move(from map[string]any, prefix, name string, to map[string]any, newPrefix, newName string) {
	value, ok := from[name]
	if !ok {
		return
	}
	delete(from, name)
	if value != nil && to[newName] == nil {
		to[newName] = value
		s[newPrefix+newName] = prefix + name
	}
}

// paths adds the dotted path of every value in overrides to set.
func paths(overrides map[string]any, prefix string, set map[string]bool) {
	for name, value := range overrides {
		set[prefix+name] = true
		if inner, ok := value.(map[string]any); ok {
			paths(inner, prefix+name+".", set)
		}
	}
}

// nearest returns the key whose name takes the fewest edits to reach from name, the first in the table on a tie.
func nearest(name string, keys []key) *key {
	best, bestEdits := &keys[0], editDistance(name, keys[0].name)
	for i := range keys {
		if edits := editDistance(name, keys[i].name); edits < bestEdits {
			best, bestEdits = &keys[i], edits
		}
	}
	return best
}

// editDistance is Levenshtein's, over bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
