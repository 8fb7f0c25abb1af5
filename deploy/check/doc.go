// Package check holds the files of deploy/ to Kubernetes' own types and to what this server needs of them. It is a module of its own
// so that nobody who builds the engine gets Kubernetes' packages.
package check
