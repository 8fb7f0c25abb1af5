package grammar

import (
	"errors"
	"regexp/syntax"
)

// formats are the patterns of those formats that are checked; JSON Schema takes any other format for a remark.
var formats = map[string]string{
	"date":      `^` + datePattern + `$`,
	"time":      `^` + timePattern + `$`,
	"date-time": `^` + datePattern + `T` + timePattern + `$`,
	"uuid":      `^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`,
	"ipv4":      `^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])$`,
	"email":     `^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9]+(-[A-Za-z0-9]+)*(\.[A-Za-z0-9]+(-[A-Za-z0-9]+)*)+$`,
}

// February ends with the 28th, so that no date is wrong.
const (
	datePattern = `[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))`
	timePattern = `([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])`
)

// boundedPattern gives a pattern a length: one that is a single class repeated, from end to end.
func boundedPattern(re *syntax.Regexp, least, most int) (*syntax.Regexp, error) {
	unusable := errors.New("beside minLength or maxLength only a pattern like ^[a-z]*$ or ^[a-z]+$ is supported: write the length into the pattern")
	if re.Op != syntax.OpConcat || len(re.Sub) != 3 || re.Sub[0].Op != syntax.OpBeginText || re.Sub[2].Op != syntax.OpEndText {
		return nil, unusable
	}
	loop := re.Sub[1]
	switch loop.Op {
	case syntax.OpPlus:
		least = max(least, 1)
	case syntax.OpStar:
	default:
		return nil, unusable
	}
	switch loop.Sub[0].Op {
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
	default:
		return nil, unusable
	}
	if least > most {
		return &syntax.Regexp{Op: syntax.OpNoMatch}, nil
	}
	counted := &syntax.Regexp{Op: syntax.OpRepeat, Min: least, Max: most, Sub: loop.Sub, Flags: loop.Flags}
	return &syntax.Regexp{Op: syntax.OpConcat, Sub: []*syntax.Regexp{re.Sub[0], counted, re.Sub[2]}}, nil
}
