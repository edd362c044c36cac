{{- /* Values that are allowed one by one, and make no sense together. */ -}}

{{- define "fc.check" -}}
{{- $v := .Values -}}
{{- if $v.redis.embedded -}}
  {{- if $v.redis.host -}}
    {{- fail "redis.host is the address of a Redis of your own: say redis.embedded=false too, or leave redis.host empty." -}}
  {{- end -}}
  {{- if ne $v.redis.user "default" -}}
    {{- fail "redis.user is for a Redis of your own: the embedded one has the user default; leave it, or say redis.embedded=false." -}}
  {{- end -}}
{{- else -}}
  {{- if not $v.redis.host -}}
    {{- fail "redis.embedded=false needs redis.host, the address of your Redis." -}}
  {{- end -}}
  {{- if not $v.redis.existingSecret -}}
    {{- fail "redis.embedded=false needs redis.existingSecret: a Secret with redis-password and tokens-redis-password." -}}
  {{- end -}}
{{- end -}}
{{- if $v.minio.embedded -}}
  {{- if $v.minio.url -}}
    {{- fail "minio.url is the address of an object store of your own: say minio.embedded=false too, or leave minio.url empty." -}}
  {{- end -}}
  {{- if not (and $v.storageSetup.enabled $v.storageSetup.users) -}}
    {{- fail "minio.embedded=true begins without bucket and users: leave storageSetup.enabled and storageSetup.users true." -}}
  {{- end -}}
{{- else -}}
  {{- if not $v.minio.url -}}
    {{- fail "minio.embedded=false needs minio.url, the address of your object store: http(s)://HOST:PORT." -}}
  {{- end -}}
  {{- if not $v.minio.existingSecret -}}
    {{- fail "minio.embedded=false needs minio.existingSecret: a Secret with combiner-secret-key, modelstore-secret-key, discovery-secret-key and, for the set-up, root-user and root-password." -}}
  {{- end -}}
{{- end -}}
{{- if and $v.discovery.enabled $v.discovery.url -}}
  {{- fail "discovery.url is the address of a discovery of your own: say discovery.enabled=false too, or leave discovery.url empty." -}}
{{- end -}}
{{- if and $v.discovery.existingSecret (not $v.discovery.url) -}}
  {{- fail "discovery.existingSecret has the token for discovery.url, which is empty: set it, or leave both empty." -}}
{{- end -}}
{{- if and $v.tls.authorityInSecret (not $v.tls.existingSecret) -}}
  {{- fail "tls.authorityInSecret says that tls.existingSecret has ca.crt, but no Secret is named: set tls.existingSecret." -}}
{{- end -}}
{{- if $v.ingress.enabled -}}
  {{- if not $v.ingress.host -}}
    {{- fail "ingress.enabled=true needs ingress.host, the name that clients call." -}}
  {{- end -}}
  {{- if $v.tls.existingSecret -}}
    {{- fail "TLS ends twice: at the ingress and at the gateway. Name the Secret in ingress.tlsSecret and leave tls.existingSecret empty, or turn the ingress off." -}}
  {{- end -}}
  {{- if and $v.ingress.discoveryHost (not $v.discovery.enabled) -}}
    {{- fail "ingress.discoveryHost leads to a discovery that is turned off: leave it empty, or say discovery.enabled=true." -}}
  {{- end -}}
{{- end -}}
{{- if not $v.advertise -}}
  {{- if $v.ingress.enabled -}}
    {{- fail "ingress.enabled=true needs advertise, HOST:PORT of the ingress as clients see it: without it they are told a name that only pods can call." -}}
  {{- end -}}
  {{- if ne $v.gateway.service.type "ClusterIP" -}}
    {{- fail (printf "gateway.service.type=%s needs advertise, HOST:PORT of the gateway as clients see it: without it they are told a name that only pods can call." $v.gateway.service.type) -}}
  {{- end -}}
{{- end -}}
{{- range $part := list "gateway" "discovery" -}}
  {{- $service := (index $v $part).service -}}
  {{- if and $service.nodePort (eq $service.type "ClusterIP") -}}
    {{- fail (printf "%s.service.nodePort needs %s.service.type NodePort or LoadBalancer." $part $part) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
