{{/* The beginning of all names. */}}
{{- define "weir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select a component's pods; they never change. (dict "root" $ "component" "worker" "pool" "name") */}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
weir.pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* All labels of an object. */}}
{{- define "weir.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/version: {{ default .root.Chart.AppVersion .root.Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "weir.selector" . }}
{{- end -}}

{{/* The image of a program. (dict "root" $ "program" "coordinator") */}}
{{- define "weir.image" -}}
{{- $image := .root.Values.image -}}
{{- $name := ternary "weir" (printf "weir-%s" .program) (eq .program "weir") -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end -}}{{ $name }}
{{- with get $image.digests .program }}@{{ . }}{{ else }}:{{ default .root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{/* What pods of all components have in common. (dict "root" $ "account" "name") */}}
{{- define "weir.pod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* What a container may do: nothing. */}}
{{- define "weir.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Where pods may run. (dict "values" ..., "root" $, "component" ..., "pool" ...) */}}
{{- define "weir.placement" -}}
{{- $values := .values -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
topologySpreadConstraints:
{{- with $values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "weir.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A value as a program reads it. Numbers of YAML are floating ones here. */}}
{{- define "weir.text" -}}
{{- if and (kindIs "float64" .) (eq . (float64 (int64 .))) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* Flags as variables. */}}
{{- define "weir.flags" -}}
{{- range $flag, $value := . }}
- name: WEIR_{{ $flag | replace "-" "_" | upper }}
  value: {{ include "weir.text" $value | quote }}
{{- end }}
{{- end -}}

{{- define "weir.tracing" -}}
{{- with .Values.tracing }}
{{- if .endpoint }}
- name: WEIR_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: WEIR_TRACE_RATIO
  value: {{ .ratio | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "weir.database" -}}
- name: WEIR_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secret.name | quote }}
      key: {{ .Values.database.secret.key | quote }}
{{- end -}}

{{/* Where the coordinator is, inside the cluster. */}}
{{- define "weir.host" -}}
{{ include "weir.fullname" . }}-coordinator.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Whether nobody who calls the coordinator is asked who they are. */}}
{{- define "weir.open" -}}
{{- if not (or .Values.auth.tokensSecret.name .Values.tls.clientCASecret) }}yes{{ end -}}
{{- end -}}

{{/* The hosts that the coordinator is called by, where others are refused, separated by commas. */}}
{{- define "weir.hosts" -}}
{{- if or .Values.coordinator.allowedHosts (include "weir.open" .) -}}
{{- $hosts := list -}}
{{- range $suffix := list "" "-headless" -}}
{{- $service := printf "%s-coordinator%s" (include "weir.fullname" $) $suffix -}}
{{- $inside := printf "%s.%s" $service $.Release.Namespace -}}
{{- $hosts = concat $hosts (list $service $inside (printf "%s.svc" $inside) (printf "%s.svc.cluster.local" $inside)) -}}
{{- end -}}
{{- $outside := list -}}
{{- if .Values.ingress.enabled }}{{ $outside = concat $outside .Values.ingress.hosts }}{{ end -}}
{{- if .Values.ingress.dashboard.enabled }}{{ $outside = concat $outside .Values.ingress.dashboard.hosts }}{{ end -}}
{{- if .Values.gateway.enabled }}{{ $outside = concat $outside .Values.gateway.hostnames }}{{ end -}}
{{- range $outside -}}
{{- if contains "*" . }}
{{- fail (printf "gateway.hostnames: %s is a pattern, and a coordinator that asks nobody who they are goes by names alone: give each name, or ask for tokens or certificates" .) -}}
{{- end -}}
{{- end -}}
{{- concat $hosts $outside .Values.coordinator.allowedHosts | uniq | join "," -}}
{{- end -}}
{{- end -}}

{{/* The services that are for clients and workers elsewhere, as a list in JSON. */}}
{{- define "weir.services" -}}
{{- list "weir.v1.SourceService" "weir.v1.JobService" "weir.v1.SearchService" "weir.v1.WorkerService" "grpc.health.v1.Health" | toJson -}}
{{- end -}}

{{- define "weir.url" -}}
{{ ternary "https" "http" (ne .Values.tls.secret "") }}://{{ include "weir.host" . }}:{{ .Values.coordinator.service.port }}
{{- end -}}

{{/* The variables of who calls the coordinator; the files are those of weir.callerMounts. */}}
{{- define "weir.callerEnv" -}}
- name: WEIR_COORDINATOR
  value: {{ include "weir.url" .root | quote }}
{{- if .token }}
- name: WEIR_TOKEN_FILE
  value: /etc/weir/token/token
{{- if not .root.Values.tls.secret }}
# Without TLS there is no other way for it.
- name: WEIR_INSECURE_TOKEN
  value: "true"
{{- end }}
{{- end }}
{{- with .root.Values.tls }}
{{- if and .secret .ca }}
- name: WEIR_CA_FILE
  value: /etc/weir/ca/ca.crt
{{- end }}
{{- if .workerSecret }}
- name: WEIR_CLIENT_CERT
  value: /etc/weir/client/tls.crt
- name: WEIR_CLIENT_KEY
  value: /etc/weir/client/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{/* Whether `helm test` has what a client needs to be let in. */}}
{{- define "weir.tested" -}}
{{- $token := or (not .Values.auth.tokensSecret.name) .Values.auth.clientTokenSecret.name -}}
{{- $certificate := or (not .Values.tls.clientCASecret) .Values.tls.workerSecret -}}
{{- if and $token $certificate }}yes{{ end -}}
{{- end -}}

{{- define "weir.callerMounts" -}}
{{- if .token }}
- {name: token, mountPath: /etc/weir/token, readOnly: true}
{{- end }}
{{- with .root.Values.tls }}
{{- if and .secret .ca }}
- {name: ca, mountPath: /etc/weir/ca, readOnly: true}
{{- end }}
{{- if .workerSecret }}
- {name: client, mountPath: /etc/weir/client, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "weir.callerVolumes" -}}
{{- with .token }}
- name: token
  secret:
    secretName: {{ .name | quote }}
    defaultMode: 0440
    items:
      - {key: {{ .key | quote }}, path: token}
{{- end }}
{{- with .root.Values.tls }}
{{- if and .secret .ca }}
- name: ca
  secret:
    secretName: {{ .secret | quote }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- with .workerSecret }}
- name: client
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end -}}

{{/* A pool with the defaults in what it does not say; YAML. (dict "root" $ "pool" {...}) */}}
{{- define "weir.pool" -}}
{{- $defaults := deepCopy .root.Values.workers.defaults -}}
{{- $pool := mergeOverwrite $defaults (deepCopy .pool) -}}
{{- $_ := set $pool "autoscaling" (mergeOverwrite (deepCopy .root.Values.autoscaling) $pool.autoscaling) -}}
{{- toYaml $pool -}}
{{- end -}}

{{/* The models of a pool, as a list in JSON. */}}
{{- define "weir.poolModels" -}}
{{- if .models }}{{ .models | toJson }}{{ else }}{{ list .model | toJson }}{{ end -}}
{{- end -}}

{{/* The models that sources may use where no profiles are given, separated by commas. */}}
{{- define "weir.models" -}}
{{- $models := .Values.coordinator.models -}}
{{- if not $models -}}
{{- range $name, $pool := .Values.workers.pools -}}
{{- $models = concat $models (include "weir.poolModels" $pool | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- if not $models -}}
{{- fail "coordinator.models: name the models that sources may use, or give workers.pools one, or models their profiles" -}}
{{- end -}}
{{- join "," (uniq $models) -}}
{{- end -}}

{{/* The names of the profiles, the default of sources first, as a list in JSON. */}}
{{- define "weir.profiles" -}}
{{- $names := keys .Values.models | sortAlpha -}}
{{- with .Values.coordinator.defaultModel -}}
{{- if not (has . $names) }}{{ fail (printf "coordinator.defaultModel: models has no %s" .) }}{{ end -}}
{{- $names = prepend (without $names .) . -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* A value as TOML has it, on one line. */}}
{{- define "weir.toml" -}}
{{- if kindIs "map" . -}}
{ {{- $map := . -}}
{{- range $index, $key := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ toJson $key }} = {{ include "weir.toml" (get $map $key) }}{{ end -}}
}
{{- else if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "weir.toml" $value }}{{ end }}]
{{- else if kindIs "string" . -}}{{ toJson . }}
{{- else -}}{{ include "weir.text" . }}
{{- end -}}
{{- end -}}

{{/* The file of model profiles. */}}
{{- define "weir.modelsToml" -}}
{{- range $name := include "weir.profiles" . | fromJsonArray }}
[{{ toJson $name }}]
{{- range $key, $value := get $.Values.models $name }}
{{ $key }} = {{ include "weir.toml" $value }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* The port of a URL. */}}
{{- define "weir.port" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{- if $port }}{{ $port }}{{ else }}{{ ternary "443" "80" (eq $url.scheme "https") }}{{ end -}}
{{- end -}}

{{/* How long a pod may take to end: its drain, and a little. */}}
{{- define "weir.grace" -}}
{{ add . 15 }}
{{- end -}}
