{{- /* Names, labels and images. */ -}}

{{- define "fc.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Of the objects of one part: (list . "combiner"). */ -}}
{{- define "fc.name" -}}
{{- printf "%s-%s" (include "fc.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{- define "fc.host" -}}
{{- $root := index . 0 -}}
{{- printf "%s.%s.svc.%s" (include "fc.name" .) $root.Release.Namespace $root.Values.clusterDomain -}}
{{- end -}}

{{- define "fc.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fc.labels" -}}
{{- $root := index . 0 -}}
{{ include "fc.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fc.metadata" -}}
name: {{ include "fc.name" . }}
labels: {{- include "fc.labels" . | nindent 2 }}
{{- end -}}

{{- /* Of our own: (list . "combiner"). */ -}}
{{- define "fc.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{ .prefix }}/{{ index $ 1 }}:{{ .tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* HOST:PORT that clients are told: the Service of the gateway, where nothing else was said. */ -}}
{{- define "fc.advertise" -}}
{{- .Values.advertise | default (printf "%s:%v" (include "fc.host" (list . "gateway")) .Values.gateway.service.port) -}}
{{- end -}}

{{- define "fc.advertisesTls" -}}
{{- if or .Values.tls.existingSecret (and .Values.ingress.enabled .Values.ingress.tlsSecret) }}true{{ end -}}
{{- end -}}

{{- define "fc.clientTokens" -}}
{{- $said := .Values.access.requireClientTokens -}}
{{- if kindIs "bool" $said }}{{ $said }}{{ else }}{{ not (empty (include "fc.advertisesTls" .)) }}{{ end -}}
{{- end -}}
