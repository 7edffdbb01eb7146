{{/* Names. A release called like the chart is not named twice. */}}
{{- define "bananas.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "bananas.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "bananas.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "bananas.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "bananas.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "bananas.fullname" .) "default") -}}
{{- end -}}

{{/* What never changes of one component's pods. Call with (list . "gateway"). */}}
{{- define "bananas.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "bananas.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object; part-of lets several releases in a namespace share one Valkey. */}}
{{- define "bananas.labels" -}}
{{- $root := index . 0 -}}
{{ include "bananas.selector" . }}
app.kubernetes.io/part-of: bananas
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Labels of a pod. Without versions: an upgrade of the chart alone restarts nothing. */}}
{{- define "bananas.podLabels" -}}
{{ include "bananas.selector" . }}
app.kubernetes.io/part-of: bananas
{{- end -}}

{{- define "bananas.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "bananas.valkeySecret" -}}
{{- .Values.valkey.existingSecret | default (printf "%s-valkey" (include "bananas.fullname" .)) -}}
{{- end -}}

{{- define "bananas.redisSecret" -}}
{{- .Values.redis.existingSecret | default (printf "%s-redis" (include "bananas.fullname" .)) -}}
{{- end -}}

{{- define "bananas.keySecret" -}}
{{- .Values.secretKey.existingSecret | default (.Values.secretKey.create | ternary (printf "%s-key" (include "bananas.fullname" .)) "") -}}
{{- end -}}

{{/* What gateway and runner share. */}}
{{- define "bananas.env" -}}
{{- if .Values.valkey.enabled }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "bananas.valkeySecret" . }}, key: password}}
- name: BANANAS_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "bananas.fullname" . }}-valkey:6379/0
{{- else }}
- name: BANANAS_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "bananas.redisSecret" . }}, key: url}}
{{- end }}
- name: BANANAS_LEASE_S
  value: {{ .Values.leaseSeconds | quote }}
- name: BANANAS_LOG_LEVEL
  value: {{ .Values.logLevel }}
{{- if include "bananas.keySecret" . }}
- name: BANANAS_SECRET_KEY_FILE
  value: /etc/bananas/key/secret-key
{{- end }}
{{- end -}}

{{- define "bananas.extraEnv" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "bananas.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "bananas.keySecret" . }}
- {name: key, mountPath: /etc/bananas/key, readOnly: true}
{{- end }}
{{- if .Values.redis.tlsSecret }}
- {name: redis-tls, mountPath: /etc/bananas/redis-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "bananas.volumes" -}}
{{- if include "bananas.keySecret" . }}
- name: key
  secret:
    secretName: {{ include "bananas.keySecret" . }}
    items: [{key: secret-key, path: secret-key}]
    defaultMode: 0440
{{- end }}
{{- if .Values.redis.tlsSecret }}
- name: redis-tls
  secret: {secretName: {{ .Values.redis.tlsSecret }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{/* What every pod has. enableServiceLinks: for a service called bananas, Kubernetes would set BANANAS_PORT and the like,
     and a BANANAS_ variable that is no setting refuses to start. */}}
{{- define "bananas.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
serviceAccountName: {{ include "bananas.serviceAccount" . }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where a component's pods may run. Call with its values. */}}
{{- define "bananas.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A container that may do nothing to its own root, with no capability. */}}
{{- define "bananas.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Egress rules to Redis and to name servers. */}}
{{- define "bananas.toRedis" -}}
{{- if .Values.valkey.enabled }}
- to: [{podSelector: {matchLabels: {{ include "bananas.selector" (list . "valkey") | fromYaml | toJson }}}}]
  ports: [{port: 6379, protocol: TCP}]
{{- else }}
- to: {{ toYaml .Values.networkPolicy.redisTo | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.redisPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
- to: {{ toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end -}}
