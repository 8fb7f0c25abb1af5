package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// side is one of the two builds that are compared.
type side struct {
	label  string // "base" or "new"
	commit string // of the build; "-dirty" for a work tree with changes; the hash of a given binary
	binary string
}

func git(ctx context.Context, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %s", strings.Join(args, " "), firstLine(stderr.String(), err))
	}
	return strings.TrimSpace(string(out)), nil
}

func firstLine(text string, err error) string {
	if line, _, _ := strings.Cut(strings.TrimSpace(text), "\n"); line != "" {
		return line
	}
	return err.Error()
}

// build returns the side that what names: a test binary as it is, the work tree built anew, or a revision built once into the cache.
func build(ctx context.Context, s settings, label, what string) (side, error) {
	if info, err := os.Stat(what); err == nil && info.Mode().IsRegular() {
		text, err := os.ReadFile(what)
		if err != nil {
			return side{}, err
		}
		path, err := filepath.Abs(what)
		return side{label, fmt.Sprintf("%x", sha256.Sum256(text))[:12], path}, err
	}
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return side{}, err
	}
	if what == "." {
		commit, err := git(ctx, "rev-parse", "HEAD")
		if err != nil {
			return side{}, err
		}
		if changes, err := git(ctx, "status", "--porcelain"); err != nil {
			return side{}, err
		} else if changes != "" {
			commit = short(commit) + "-dirty"
		}
		binary, err := filepath.Abs(filepath.Join(s.cache, "worktree.test"))
		if err != nil {
			return side{}, err
		}
		return side{label, short12(commit), binary}, compile(ctx, s, ".", binary)
	}
	commit, err := git(ctx, "rev-parse", "--verify", what+"^{commit}")
	if err != nil {
		return side{}, fmt.Errorf("%s is no test binary and no revision: %w", what, err)
	}
	key := sha256.Sum256([]byte(s.Package + "\x00" + s.Tags))
	binary, err := filepath.Abs(filepath.Join(s.cache, fmt.Sprintf("%s-%x.test", short(commit), key[:4])))
	if err != nil {
		return side{}, err
	}
	if _, err := os.Stat(binary); err == nil {
		return side{label, short(commit), binary}, nil
	}
	tree, err := os.MkdirTemp("", "ab-")
	if err != nil {
		return side{}, err
	}
	defer os.RemoveAll(tree)
	tree = filepath.Join(tree, "tree")
	if _, err := git(ctx, "worktree", "add", "--detach", tree, commit); err != nil {
		return side{}, err
	}
	defer git(context.WithoutCancel(ctx), "worktree", "remove", "--force", tree)
	return side{label, short(commit), binary}, compile(ctx, s, tree, binary)
}

// short12 keeps a "-dirty" behind a shortened commit.
func short12(commit string) string {
	if clean, ok := strings.CutSuffix(commit, "-dirty"); ok {
		return short(clean) + "-dirty"
	}
	return short(commit)
}

func compile(ctx context.Context, s settings, dir, binary string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", s.Tags, "-o", binary+".tmp", s.Package)
	cmd.Dir, cmd.Stderr = dir, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build of %s in %s: %s", s.Package, dir, firstLine(stderr.String(), err))
	}
	return os.Rename(binary+".tmp", binary)
}
