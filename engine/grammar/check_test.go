package grammar

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"net/mail"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// check is a second, plain reading of JSON Schema, to judge outputs with. It returns what is wrong with v, or "".
func check(root, schema, v any) string {
	s, ok := schema.(map[string]any)
	if !ok {
		if schema == false {
			return "nothing is allowed"
		}
		return ""
	}
	if ref, ok := s["$ref"].(string); ok {
		target := root
		for _, step := range strings.Split(strings.TrimPrefix(strings.TrimPrefix(ref, "#"), "/"), "/") {
			switch at := target.(type) {
			case map[string]any:
				if step != "" {
					target = at[step]
				}
			case []any:
				i, _ := strconv.Atoi(step)
				target = at[i]
			}
		}
		if bad := check(root, target, v); bad != "" {
			return bad
		}
	}
	for _, key := range []string{"anyOf", "oneOf"} {
		if list, ok := s[key].([]any); ok && !slices.ContainsFunc(list, func(b any) bool { return check(root, b, v) == "" }) {
			return key + " has no branch for it"
		}
	}
	if list, ok := s["allOf"].([]any); ok {
		for _, b := range list {
			if bad := check(root, b, v); bad != "" {
				return bad
			}
		}
	}
	if list, ok := s["enum"].([]any); ok && !slices.ContainsFunc(list, func(e any) bool { return reflect.DeepEqual(e, v) }) {
		return "not in enum"
	}
	if c, ok := s["const"]; ok && !reflect.DeepEqual(c, v) {
		return "not the const"
	}
	if kind, ok := s["type"]; ok {
		kinds, ok := kind.([]any)
		if !ok {
			kinds = []any{kind}
		}
		if !slices.ContainsFunc(kinds, func(k any) bool { return hasType(v, k.(string)) }) {
			return fmt.Sprintf("%v is not a %v", v, kind)
		}
	}
	number := func(key string) (int, bool) {
		n, ok := s[key].(json.Number)
		if !ok {
			return 0, false
		}
		i, err := n.Int64()
		return int(i), err == nil
	}
	switch v := v.(type) {
	case string:
		return checkString(s, v, number)
	case json.Number:
		value, _ := new(big.Rat).SetString(v.String())
		for key, bad := range map[string]func(int) bool{
			"minimum": func(c int) bool { return c < 0 }, "exclusiveMinimum": func(c int) bool { return c <= 0 },
			"maximum": func(c int) bool { return c > 0 }, "exclusiveMaximum": func(c int) bool { return c >= 0 },
		} {
			if bound, ok := s[key].(json.Number); ok {
				b, _ := new(big.Rat).SetString(bound.String())
				if bad(value.Cmp(b)) {
					return fmt.Sprintf("%s breaks %s %s", v, key, bound)
				}
			}
		}
	case []any:
		if n, ok := number("minItems"); ok && len(v) < n {
			return "too few items"
		}
		if n, ok := number("maxItems"); ok && len(v) > n {
			return "too many items"
		}
		prefix, _ := s["prefixItems"].([]any)
		for i, item := range v {
			sub := s["items"]
			if i < len(prefix) {
				sub = prefix[i]
			}
			if sub != nil {
				if bad := check(root, sub, item); bad != "" {
					return fmt.Sprintf("item %d: %s", i, bad)
				}
			}
		}
	case map[string]any:
		props, _ := s["properties"].(map[string]any)
		for key, item := range v {
			sub, ok := props[key]
			if !ok {
				sub = s["additionalProperties"]
			}
			if sub != nil {
				if bad := check(root, sub, item); bad != "" {
					return key + ": " + bad
				}
			}
		}
		required, _ := s["required"].([]any)
		for _, key := range required {
			if _, ok := v[key.(string)]; !ok {
				return fmt.Sprintf("%v is missing", key)
			}
		}
	}
	return ""
}

func checkString(s map[string]any, v string, number func(string) (int, bool)) string {
	if n, ok := number("minLength"); ok && utf8.RuneCountInString(v) < n {
		return "too short"
	}
	if n, ok := number("maxLength"); ok && utf8.RuneCountInString(v) > n {
		return "too long"
	}
	if p, ok := s["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
		return fmt.Sprintf("%q does not match %s", v, p)
	}
	var err error
	switch s["format"] {
	case "date":
		_, err = time.Parse(time.DateOnly, v)
	case "date-time":
		_, err = time.Parse(time.RFC3339Nano, v)
	case "email":
		_, err = mail.ParseAddress(v)
	case "ipv4":
		_, err = netip.ParseAddr(v)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func hasType(v any, kind string) bool {
	switch v := v.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case string:
		return kind == "string"
	case json.Number:
		return kind == "number" || kind == "integer" && !strings.ContainsAny(v.String(), ".eE")
	case []any:
		return kind == "array"
	}
	return kind == "object"
}

func decode(text []byte) (v any, err error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err = dec.Decode(&v); err == nil && dec.More() {
		err = fmt.Errorf("more than one value")
	}
	return v, err
}
