{{- /* Parts of network policies. */ -}}

{{- /* Pods of these parts: (list . "combiner" …). */ -}}
{{- define "fc.peers" -}}
{{- include "fc.peerList" . | trim -}}
{{- end -}}

{{- define "fc.peerList" -}}
{{- $root := index . 0 }}
{{- range rest . }}
- podSelector:
    matchLabels: {{- include "fc.selector" (list $root .) | nindent 6 }}
{{- end }}
{{- end -}}

{{- define "fc.dnsEgress" -}}
- to: {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end -}}

{{- define "fc.redisEgress" -}}
{{- if .Values.redis.embedded }}
- to: {{- include "fc.peers" (list . "redis") | nindent 4 }}
  ports: [{port: 6379}]
{{- else }}
- {{ with .Values.networkPolicy.redis }}to: {{- toYaml . | nindent 4 }}
  {{ end }}ports: [{port: {{ .Values.redis.port }}}]
{{- end }}
{{- end -}}

{{- define "fc.s3Egress" -}}
{{- if .Values.minio.embedded }}
- to: {{- include "fc.peers" (list . "minio") | nindent 4 }}
  ports: [{port: 9000}]
{{- else }}
{{- $url := urlParse .Values.minio.url }}
- {{ with .Values.networkPolicy.s3 }}to: {{- toYaml . | nindent 4 }}
  {{ end }}ports: [{port: {{ regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) }}}]
{{- end }}
{{- end -}}

{{- define "fc.metricsIngress" -}}
- {{ with (index . 0).Values.networkPolicy.metrics }}from: {{- toYaml . | nindent 4 }}
  {{ end }}ports: [{port: {{ index . 1 }}}]
{{- end -}}

{{- define "fc.clientsIngress" -}}
- {{ with (index . 0).Values.networkPolicy.clients }}from:
    {{- toYaml . | nindent 4 }}
    {{- /* Those of our own that are clients there. */ -}}
    {{- include "fc.peers" (concat (list (index $ 0)) (slice $ 2)) | nindent 4 }}
  {{ end }}ports: [{port: {{ index . 1 }}}]
{{- end -}}

{{- define "fc.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "fc.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels: {{- include "fc.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end }}
