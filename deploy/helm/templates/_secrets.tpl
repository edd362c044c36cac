{{- /* Which Secrets hold what, and what is made for the first install. */ -}}

{{- define "fc.operatorSecret" -}}
{{- .Values.access.existingSecret | default (include "fc.name" (list . "operator-token")) -}}
{{- end -}}

{{- define "fc.redisSecret" -}}
{{- .Values.redis.existingSecret | default (include "fc.name" (list . "redis")) -}}
{{- end -}}

{{- define "fc.minioSecret" -}}
{{- .Values.minio.existingSecret | default (include "fc.name" (list . "minio")) -}}
{{- end -}}

{{- /* The combiner announces itself with the operator's token, unless an outside discovery wants another. */ -}}
{{- define "fc.discoverySecret" -}}
{{- .Values.discovery.existingSecret | default (include "fc.operatorSecret" .) -}}
{{- end -}}

{{- define "fc.discoveryKey" -}}
{{- if .Values.discovery.existingSecret }}discovery-token{{ else }}operator-token{{ end -}}
{{- end -}}

{{- define "fc.discoveryUrl" -}}
{{- if .Values.discovery.enabled -}}
http://{{ include "fc.name" (list . "discovery") }}:{{ .Values.discovery.service.port }}
{{- else -}}
{{ .Values.discovery.url }}
{{- end -}}
{{- end -}}

{{- /*
  A word of random letters for each key, made once: (list . NAME PREFIX (list KEY…)) is YAML of key: word. What a
  Secret of that name in the cluster already has is kept, so an upgrade changes no password.
*/ -}}
{{- define "fc.words" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- if not (hasKey $root.Values "madeWords") }}{{ $_ := set $root.Values "madeWords" dict }}{{ end -}}
{{- if not (hasKey $root.Values.madeWords $name) -}}
  {{- $old := (lookup "v1" "Secret" $root.Release.Namespace $name).data | default dict -}}
  {{- $words := dict -}}
  {{- range index . 3 -}}
    {{- $_ := set $words . (ternary (index $old . | default "" | b64dec) (printf "%s%s" (index $ 2) (randAlphaNum 36)) (hasKey $old .)) -}}
  {{- end -}}
  {{- $_ := set $root.Values.madeWords $name $words -}}
{{- end -}}
{{- toYaml (index $root.Values.madeWords $name) -}}
{{- end -}}

{{- define "fc.operatorWords" -}}
{{- include "fc.words" (list . (include "fc.name" (list . "operator-token")) "fct_" (list "operator-token")) -}}
{{- end -}}

{{- define "fc.redisWords" -}}
{{- include "fc.words" (list . (include "fc.name" (list . "redis")) "" (list "redis-password" "tokens-redis-password")) -}}
{{- end -}}

{{- define "fc.minioKeys" -}}
root-user root-password combiner-secret-key modelstore-secret-key discovery-secret-key
{{- end -}}

{{- define "fc.minioWords" -}}
{{- $keys := splitList " " (include "fc.minioKeys" .) -}}
{{- include "fc.words" (list . (include "fc.name" (list . "minio")) "" $keys) -}}
{{- end -}}

{{- /* Pods whose passwords were made anew start anew. */ -}}
{{- define "fc.secretsChecksum" -}}
{{- $all := list -}}
{{- if not .Values.access.existingSecret }}{{ $all = append $all (include "fc.operatorWords" .) }}{{ end -}}
{{- if not .Values.redis.existingSecret }}{{ $all = append $all (include "fc.redisWords" .) }}{{ end -}}
{{- if not .Values.minio.existingSecret }}{{ $all = append $all (include "fc.minioWords" .) }}{{ end -}}
{{- join "," $all | sha256sum -}}
{{- end -}}
