{{- /* What every pod and every container of the chart has. */ -}}

{{- /* Metadata of a pod: (dict "root" . "part" "combiner" "metrics" PORT "checksums" (dict NAME SUM)). */ -}}
{{- define "fc.podMetadata" -}}
labels:
  {{- include "fc.selector" (list .root .part) | nindent 2 }}
  {{- if .metrics }}
  federated-combiner/metrics: "true"
  {{- end }}
  {{- with .root.Values.pods.labels }}{{ toYaml . | nindent 2 }}{{ end }}
annotations:
  {{- range $name, $sum := .checksums }}
  checksum/{{ $name }}: {{ $sum }}
  {{- end }}
  {{- if .metrics }}
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ .metrics | quote }}
  {{- with .metricsPath }}
  prometheus.io/path: {{ . }}
  {{- end }}
  {{- end }}
  {{- with .root.Values.pods.annotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end -}}

{{- /* The beginning of a pod's spec: (dict "root" . "part" "combiner" "user" 10001 "group" 10001). */ -}}
{{- define "fc.podSpec" -}}
serviceAccountName: {{ include "fc.name" (list .root .part) }}
automountServiceAccountToken: false
# A release named like one of our settings would set it.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .group }}
  fsGroup: {{ .group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* Replicas on nodes and zones of their own where there are enough: (list . "combiner"). */ -}}
{{- define "fc.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "fc.selector" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "fc.hardened" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Of our services: health and metrics are on 9464. A start waits for back ends without an end. */ -}}
{{- define "fc.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{- /* A process that got SIGTERM has this long for calls under way, and then for stopping its parts. */ -}}
{{- define "fc.gracePeriod" -}}
{{- add (ceil .drainSeconds) 20 -}}
{{- end -}}

{{- /*
  The environment of a service: (dict "root" . "part" "combiner" "values" .Values.combiner "minioUser" KEY
  "redisUser" NAME "redisKey" KEY).
*/ -}}
{{- define "fc.environment" -}}
{{- $v := .root.Values -}}
- {name: LOG_LEVEL, value: {{ $v.logLevel }}}
{{- if hasKey .values "drainSeconds" }}
- {name: DRAIN_SECONDS, value: {{ .values.drainSeconds | quote }}}
{{- end }}
- {name: OPERATOR_TOKEN_FILE, value: /secrets/operator-token}
- {name: REQUIRE_CLIENT_TOKENS, value: {{ include "fc.clientTokens" .root | quote }}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "fc.redisSecret" .root }}, key: {{ .redisKey }}}
- name: REDIS_URL
  {{- if $v.redis.embedded }}
  value: redis://{{ .redisUser }}@{{ include "fc.name" (list .root "redis") }}:6379/0
  {{- else }}
  value: {{ ternary "rediss" "redis" $v.redis.tls }}://{{ .redisUser }}@{{ $v.redis.host }}:{{ $v.redis.port }}/{{ $v.redis.database }}
  {{- end }}
- {name: STORE, value: minio}
{{- include "fc.storeEnvironment" .root | nindent 0 }}
- {name: MINIO_ACCESS_KEY, value: {{ index $v.minio.users .minioUser | quote }}}
- name: MINIO_SECRET_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "fc.minioSecret" .root }}, key: {{ .minioUser }}-secret-key}
{{- range $name, $value := .values.settings }}
- {name: {{ $name }}, value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}}
{{- end }}
{{- end -}}

{{- define "fc.storeEnvironment" -}}
- {name: MINIO_URL, value: {{ include "fc.minioUrl" . | quote }}}
- {name: MINIO_BUCKET, value: {{ .Values.minio.bucket | quote }}}
- {name: MINIO_REGION, value: {{ .Values.minio.region | quote }}}
{{- if .Values.minio.authoritySecret }}
- {name: MINIO_CA_FILE, value: /authorities/store/ca.crt}
{{- end }}
{{- end -}}

{{- define "fc.minioUrl" -}}
{{- if .Values.minio.embedded }}http://{{ include "fc.name" (list . "minio") }}:9000{{ else }}{{ .Values.minio.url }}{{ end -}}
{{- end -}}

{{- define "fc.storeMount" -}}
{{- if .Values.minio.authoritySecret }}
- {name: store-authority, mountPath: /authorities/store, readOnly: true}
{{- end }}
{{- end -}}

{{- define "fc.storeVolume" -}}
{{- if .Values.minio.authoritySecret }}
- name: store-authority
  secret: {secretName: {{ .Values.minio.authoritySecret }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end -}}

{{- define "fc.mounts" -}}
- {name: operator-token, mountPath: /secrets, readOnly: true}
- {name: scratch, mountPath: /scratch}
- {name: tmp, mountPath: /tmp}
{{- include "fc.storeMount" . }}
{{- end -}}

{{- /* (dict "root" . "values" .Values.combiner). */ -}}
{{- define "fc.volumes" -}}
- name: operator-token
  secret: {secretName: {{ include "fc.operatorSecret" .root }}, defaultMode: 0440, items: [{key: operator-token, path: operator-token}]}
- name: scratch
  emptyDir: {sizeLimit: {{ .values.scratchSize }}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- include "fc.storeVolume" .root }}
{{- end -}}
