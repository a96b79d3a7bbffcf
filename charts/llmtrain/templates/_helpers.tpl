{{- /* Names. Every name of an object derives from one of these. */ -}}

{{- define "llmtrain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "llmtrain.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" -}}
{{- else if contains (include "llmtrain.name" .) .Release.Name -}}
{{- .Release.Name | trunc 43 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "llmtrain.name" .) | trunc 43 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmtrain.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- /* The operator's name: of the Deployment of one watched namespace if `target` is not empty. */ -}}
{{- define "llmtrain.operator" -}}
{{- $name := printf "%s-operator" (include "llmtrain.fullname" .root) -}}
{{- with .target -}}
{{- $whole := printf "%s-%s" $name . -}}
{{- if gt (len $whole) 63 -}}
{{- $whole = printf "%s-%s" ($whole | trunc 54 | trimSuffix "-") ($whole | sha256sum | trunc 8) -}}
{{- end -}}
{{- $name = $whole -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "llmtrain.serviceAccount" -}}
{{- $ours := ternary (include "llmtrain.operator" (dict "root" .)) "default" .Values.serviceAccount.create -}}
{{- default $ours .Values.serviceAccount.name -}}
{{- end -}}

{{- define "llmtrain.priorityClass" -}}
{{- if .Values.priorityClass.create -}}
{{- default (include "llmtrain.operator" (dict "root" .)) .Values.priorityClass.name -}}
{{- else -}}
{{- .Values.priorityClassName -}}
{{- end -}}
{{- end -}}

{{- /* Metadata. Arguments: root, name; namespace, clusterScoped, component, labels, annotations. */ -}}

{{- define "llmtrain.metadata" -}}
name: {{ toYaml .name }}
{{- if not .clusterScoped }}
namespace: {{ toYaml (default (include "llmtrain.namespace" .root) .namespace) }}
{{- end }}
labels:
  {{- include "llmtrain.labels" . | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) (default (dict) .root.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "llmtrain.labels" -}}
{{- $ours := dict
    "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
    "app.kubernetes.io/name" (include "llmtrain.name" .root)
    "app.kubernetes.io/instance" .root.Release.Name
    "app.kubernetes.io/version" .root.Chart.AppVersion
    "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- with .component }}{{ $_ := set $ours "app.kubernetes.io/component" . }}{{ end -}}
{{- toYaml (merge $ours (default (dict) .labels) (default (dict) .root.Values.commonLabels)) -}}
{{- end -}}

{{- define "llmtrain.crdMetadata" -}}
{{- $keep := dict -}}
{{- if .root.Values.crds.keep }}{{ $_ := set $keep "helm.sh/resource-policy" "keep" }}{{ end -}}
{{- include "llmtrain.metadata" (dict "root" .root "name" .name "clusterScoped" true "annotations" $keep) -}}
{{- end -}}

{{- /* Labels by which pods are selected. Those of Deployments cannot change. Arguments: root, component, target. */ -}}
{{- define "llmtrain.selector" -}}
app.kubernetes.io/name: {{ include "llmtrain.name" .root | toYaml }}
app.kubernetes.io/instance: {{ toYaml .root.Release.Name }}
app.kubernetes.io/component: {{ default "operator" .component }}
{{- with .target }}
llmtrain.dev/watch-namespace: {{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What makes an object one of the release. It is the same in each version: with other values, Helm and the operator
would set the same fields differently. */ -}}
{{- define "llmtrain.ownership" -}}
{{- $labels := dict
    "app.kubernetes.io/instance" .Release.Name
    "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $annotations := dict
    "meta.helm.sh/release-name" .Release.Name
    "meta.helm.sh/release-namespace" .Release.Namespace -}}
{{- dict "labels" $labels "annotations" $annotations | toJson -}}
{{- end -}}

{{- /* Who may connect to the HTTP port of training pods: all operators of the release, and scrapers. */ -}}
{{- define "llmtrain.metricsPeers" -}}
{{- $namespace := dict "kubernetes.io/metadata.name" (include "llmtrain.namespace" .) -}}
{{- $operator := dict
    "namespaceSelector" (dict "matchLabels" $namespace)
    "podSelector" (dict "matchLabels" (include "llmtrain.selector" (dict "root" .) | fromYaml)) -}}
{{- $jobs := default (dict) .Values.jobNetworkPolicy -}}
{{- prepend (default (list) $jobs.scrapers) $operator | toJson -}}
{{- end -}}

{{- define "llmtrain.registry" -}}
{{- $global := default (dict) .Values.global -}}
{{- default "" (default .Values.image.registry $global.imageRegistry) -}}
{{- end -}}

{{- define "llmtrain.image" -}}
{{- $image := .Values.image -}}
{{- with include "llmtrain.registry" . }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- /* Not empty if nodes pull the image from the default registry of their container runtime. */ -}}
{{- define "llmtrain.hasNoRegistry" -}}
{{- $parts := splitList "/" .Values.image.repository -}}
{{- $isHost := and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) -}}
{{- if not (or (include "llmtrain.registry" .) $isHost (eq .Values.image.pullPolicy "Never")) }}true{{ end -}}
{{- end -}}

{{- define "llmtrain.podSecurityContext" -}}
{{- $context := default (dict) .Values.podSecurityContext -}}
{{- if not .Values.fixedUser -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" -}}
{{- end -}}
{{- with $context }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "llmtrain.pullSecrets" -}}
{{- $found := list -}}
{{- $global := default (dict) .Values.global -}}
{{- range concat (default (list) $global.imagePullSecrets) (default (list) .Values.imagePullSecrets) -}}
{{- $found = append $found (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{- with $found }}{{ toYaml (uniq .) }}{{ end -}}
{{- end -}}

{{- /* What no schema expresses. */ -}}
{{- define "llmtrain.validate" -}}
{{- $config := .Values.config -}}
{{- if not (and (lt (float64 $config.retryPeriod) (float64 $config.renewDeadline)) (lt (float64 $config.renewDeadline) (float64 $config.leaseDuration))) -}}
{{- fail "config: retryPeriod < renewDeadline < leaseDuration is required" -}}
{{- end -}}
{{- if eq (int $config.metricsPort) (int $config.healthPort) -}}
{{- fail "config: metricsPort and healthPort must differ" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "LLMTRAIN_OPERATOR_" .name -}}
{{- $flag := trimPrefix "LLMTRAIN_OPERATOR_" .name | lower | camelcase | untitle -}}
{{- fail (printf "extraEnv: %s is set by the chart%s" .name (hasKey $config $flag | ternary (printf ": use config.%s" $flag) "")) -}}
{{- end -}}
{{- if has .name $names -}}
{{- fail (printf "extraEnv: %s is there twice" .name) -}}
{{- end -}}
{{- if and .value .valueFrom -}}
{{- fail (printf "extraEnv: %s has both value and valueFrom" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.metricsService.enabled) -}}
{{- fail "serviceMonitor: it selects the Service: enable metricsService" -}}
{{- end -}}
{{- if and .Values.priorityClass.create .Values.priorityClassName -}}
{{- fail "priorityClass: with priorityClassName, the class must not be created" -}}
{{- end -}}
{{- end -}}
