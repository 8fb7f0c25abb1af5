package check

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// document is one resource of a manifest.
type document struct {
	file string
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`
	text              []byte
}

func documents(t *testing.T) (all []document) {
	files, err := filepath.Glob("../k8s/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, text := range bytes.Split(data, []byte("\n---\n")) {
			d := document{file: filepath.Base(file), text: text}
			require.NoError(t, yaml.Unmarshal(text, &d), file)
			require.NotEmpty(t, d.Kind, file)
			all = append(all, d)
		}
	}
	return all
}

// strict decodes a resource and refuses what its type does not have. apiVersion is the type's.
func strict[T any](t *testing.T, d document, apiVersion string) *T {
	require.Equal(t, apiVersion, d.APIVersion, d.file)
	v := new(T)
	require.NoError(t, yaml.UnmarshalStrict(d.text, v), "%s: %s", d.file, d.Kind)
	return v
}

// leaderWorkerSet is the part of the extension's type that is used here.
type leaderWorkerSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas        int `json:"replicas"`
		RolloutStrategy struct {
			Type                       string `json:"type"`
			RollingUpdateConfiguration struct {
				MaxUnavailable int `json:"maxUnavailable"`
				MaxSurge       int `json:"maxSurge"`
			} `json:"rollingUpdateConfiguration"`
		} `json:"rolloutStrategy"`
		LeaderWorkerTemplate struct {
			Size           int                    `json:"size"`
			RestartPolicy  string                 `json:"restartPolicy"`
			LeaderTemplate corev1.PodTemplateSpec `json:"leaderTemplate"`
			WorkerTemplate corev1.PodTemplateSpec `json:"workerTemplate"`
		} `json:"leaderWorkerTemplate"`
	} `json:"spec"`
}

// set is everything that the manifests hold.
type set struct {
	deployment *appsv1.Deployment
	service    *corev1.Service
	account    *corev1.ServiceAccount
	budget     *policyv1.PodDisruptionBudget
	policy     *networkingv1.NetworkPolicy
	scaler     *autoscalingv2.HorizontalPodAutoscaler
	group      *leaderWorkerSet
	others     map[string]document // custom resources without a type here: kubeconform reads them
}

func load(t *testing.T) set {
	s := set{others: map[string]document{}}
	for _, d := range documents(t) {
		assert.Equal(t, "tokamak", d.Name, "%s: %s", d.file, d.Kind)
		switch d.Kind {
		case "Deployment":
			s.deployment = strict[appsv1.Deployment](t, d, "apps/v1")
		case "Service":
			s.service = strict[corev1.Service](t, d, "v1")
		case "ServiceAccount":
			s.account = strict[corev1.ServiceAccount](t, d, "v1")
		case "PodDisruptionBudget":
			s.budget = strict[policyv1.PodDisruptionBudget](t, d, "policy/v1")
		case "NetworkPolicy":
			s.policy = strict[networkingv1.NetworkPolicy](t, d, "networking.k8s.io/v1")
		case "HorizontalPodAutoscaler":
			s.scaler = strict[autoscalingv2.HorizontalPodAutoscaler](t, d, "autoscaling/v2")
		case "LeaderWorkerSet":
			s.group = strict[leaderWorkerSet](t, d, "leaderworkerset.x-k8s.io/v1")
		case "PodMonitor", "InferencePool", "HTTPRoute":
			s.others[d.Kind] = d
		default:
			t.Errorf("%s: nothing here checks a %s", d.file, d.Kind)
		}
	}
	require.NotNil(t, s.deployment)
	require.NotNil(t, s.service)
	require.NotNil(t, s.account)
	require.NotNil(t, s.budget)
	require.NotNil(t, s.policy)
	require.NotNil(t, s.scaler)
	require.NotNil(t, s.group)
	require.Len(t, s.others, 3)
	return s
}

// TestPods holds every pod to what a server that strangers reach must have.
func TestPods(t *testing.T) {
	s := load(t)
	pods := map[string]corev1.PodTemplateSpec{
		"Deployment": s.deployment.Spec.Template, "leader": s.group.Spec.LeaderWorkerTemplate.LeaderTemplate,
		"worker": s.group.Spec.LeaderWorkerTemplate.WorkerTemplate,
	}
	for name, pod := range pods {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, s.deployment.Spec.Template, pod, "one pod in three places")
			require.Len(t, pod.Spec.Containers, 1)
			c := pod.Spec.Containers[0]
			assert.False(t, *pod.Spec.AutomountServiceAccountToken)
			assert.Equal(t, s.account.Name, pod.Spec.ServiceAccountName)
			assert.True(t, *pod.Spec.SecurityContext.RunAsNonRoot)
			assert.Positive(t, *pod.Spec.SecurityContext.RunAsUser)
			assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.Spec.SecurityContext.SeccompProfile.Type)
			assert.False(t, pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC)
			assert.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
			assert.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
			assert.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
			assert.Empty(t, c.SecurityContext.Capabilities.Add)
			assert.Empty(t, c.Command, "the image's own; there is no shell")
			for _, limit := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage, "nvidia.com/gpu"} {
				assert.Contains(t, c.Resources.Limits, limit)
			}
			for _, need := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				assert.Contains(t, c.Resources.Requests, need)
			}
			for what, probe := range map[string]*corev1.Probe{"/healthz": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
				require.NotNil(t, probe, what)
				assert.Equal(t, what, probe.HTTPGet.Path)
				assert.Equal(t, "http", probe.HTTPGet.Port.StrVal)
			}
			assert.Equal(t, "/healthz", c.StartupProbe.HTTPGet.Path)
			drain := flagOf(t, c.Args, "shutdown-timeout")
			require.True(t, strings.HasSuffix(drain, "s"))
			var seconds int64
			require.NoError(t, json.Unmarshal([]byte(strings.TrimSuffix(drain, "s")), &seconds))
			assert.Greater(t, *pod.Spec.TerminationGracePeriodSeconds, c.Lifecycle.PreStop.Sleep.Seconds+seconds+5, "killed before it has drained")
			for _, m := range c.VolumeMounts {
				assert.True(t, m.ReadOnly || m.Name == "cache", "%s: writable", m.Name)
			}
			for _, v := range pod.Spec.Volumes {
				assert.Nil(t, v.HostPath, v.Name)
				if v.EmptyDir != nil {
					assert.NotNil(t, v.EmptyDir.SizeLimit, v.Name)
				}
			}
		})
	}
}

func flagOf(t *testing.T, args []string, name string) string {
	for _, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return value
		}
	}
	t.Fatalf("no --%s", name)
	return ""
}

// TestFlagsExist holds arguments and environment to the list of options, which a test of the engine keeps current.
func TestFlagsExist(t *testing.T) {
	options, err := os.ReadFile("../../docs/options.md")
	require.NoError(t, err)
	s := load(t)
	c := s.deployment.Spec.Template.Spec.Containers[0]
	for _, arg := range c.Args {
		name, _, ok := strings.Cut(arg, "=")
		require.True(t, ok, arg)
		assert.Contains(t, string(options), "`"+name+"`", "no such option")
	}
	dockerfile, err := os.ReadFile("../Dockerfile")
	require.NoError(t, err)
	known := string(options) + " TOKAMAK_CACHE_DIR TOKAMAK_NVRTC"
	names := regexp.MustCompile(`TOKAMAK_[A-Z_]+`).FindAllString(string(dockerfile), -1)
	for _, e := range c.Env {
		names = append(names, e.Name)
	}
	require.NotEmpty(t, names)
	for _, name := range names {
		assert.Contains(t, known, name, "nothing reads it")
	}
	unit, err := os.ReadFile("../tokamak.service")
	require.NoError(t, err)
	for _, name := range regexp.MustCompile(` (--[a-z-]+)`).FindAllStringSubmatch(string(unit), -1) {
		assert.Contains(t, string(options), "`"+name[1]+"`", "tokamak.service: no such option")
	}
}

// TestPartsFindEachOther holds selectors, ports and names together.
func TestPartsFindEachOther(t *testing.T) {
	s := load(t)
	labels := s.deployment.Spec.Template.Labels
	find := func(what string, selector map[string]string) {
		t.Helper()
		require.NotEmpty(t, selector, what)
		for k, v := range selector {
			assert.Equal(t, v, labels[k], "%s selects other pods", what)
		}
	}
	find("Deployment", s.deployment.Spec.Selector.MatchLabels)
	find("Service", s.service.Spec.Selector)
	find("PodDisruptionBudget", s.budget.Spec.Selector.MatchLabels)
	find("NetworkPolicy", s.policy.Spec.PodSelector.MatchLabels)
	port := s.deployment.Spec.Template.Spec.Containers[0].Ports[0]
	assert.Equal(t, port.Name, s.service.Spec.Ports[0].TargetPort.StrVal)
	assert.Equal(t, flagOf(t, s.deployment.Spec.Template.Spec.Containers[0].Args, "port"), "30000")
	assert.EqualValues(t, 30000, port.ContainerPort)
	assert.Equal(t, s.deployment.Name, s.scaler.Spec.ScaleTargetRef.Name)
	assert.Nil(t, s.deployment.Spec.Replicas, "the autoscaler's to set")

	metrics, err := os.ReadFile("../../engine/metrics/collector.go")
	require.NoError(t, err)
	assert.Contains(t, string(metrics), `"`+s.scaler.Spec.Metrics[0].Pods.Metric.Name+`"`, "no such metric")

	var pool struct {
		Spec struct {
			Selector    metav1.LabelSelector
			TargetPorts []struct{ Number int32 }
		}
	}
	require.NoError(t, yaml.Unmarshal(s.others["InferencePool"].text, &pool))
	find("InferencePool", pool.Spec.Selector.MatchLabels)
	assert.Equal(t, port.ContainerPort, pool.Spec.TargetPorts[0].Number)
	var monitor struct {
		Spec struct {
			Selector            metav1.LabelSelector
			PodMetricsEndpoints []struct {
				Port          string
				Authorization struct{ Credentials corev1.SecretKeySelector }
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(s.others["PodMonitor"].text, &monitor))
	find("PodMonitor", monitor.Spec.Selector.MatchLabels)
	assert.Equal(t, port.Name, monitor.Spec.PodMetricsEndpoints[0].Port)
	assert.Equal(t, *s.deployment.Spec.Template.Spec.Containers[0].Env[0].ValueFrom.SecretKeyRef, monitor.Spec.PodMetricsEndpoints[0].Authorization.Credentials)
}

// TestImages holds the final stages of the Dockerfile to: nothing is run in them, no shell in their base, no root.
func TestImages(t *testing.T) {
	data, err := os.ReadFile("../Dockerfile")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(data), "\\\n", " ")
	bases := map[string]string{"cpu": "scratch", "cuda": "gcr.io/distroless/cc-debian12:nonroot"}
	stages := regexp.MustCompile(`(?m)^FROM (\S+) AS (\S+)$`).FindAllStringSubmatchIndex(text, -1)
	seen := 0
	for i, at := range stages {
		base, name := text[at[2]:at[3]], text[at[4]:at[5]]
		end := len(text)
		if i+1 < len(stages) {
			end = stages[i+1][0]
		}
		body := text[at[1]:end]
		if bases[name] == "" {
			continue
		}
		seen++
		assert.Equal(t, bases[name], base, name)
		assert.NotContains(t, body, "\nRUN ", name)
		assert.NotContains(t, body, "\nADD ", name)
		assert.Contains(t, body, "\nUSER 65532:65532\n", name)
		assert.Contains(t, body, "\nENTRYPOINT [\"/launch_server\"]", name)
		assert.Regexp(t, `COPY --from=build-`+name+` `, body)
	}
	assert.Equal(t, len(bases), seen)
	for _, from := range regexp.MustCompile(`COPY --from=\S+ (\S+)`).FindAllStringSubmatch(text, -1) {
		assert.NotEqual(t, "/", from[1])
	}
}
