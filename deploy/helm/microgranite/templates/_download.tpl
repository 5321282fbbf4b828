{{- /* Where downloads are kept: on the volume with the model. */ -}}
{{- define "microgranite.downloadEnv" -}}
- name: HF_HOME
  value: /models/hub
- name: XDG_CACHE_HOME
  value: /models/cache
{{- end -}}

{{- define "microgranite.initContainer" -}}
- name: {{ .name }}
  image: {{ include "microgranite.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    {{- toYaml .args | nindent 4 }}
  env:
    {{- include "microgranite.downloadEnv" .root | nindent 4 }}
    {{- with .root.Values.model.download.tokenSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: token
    {{- end }}
  resources:
    {{- $memory := include "microgranite.memory" .root | fromYaml }}
    requests:
      cpu: {{ .root.Values.cpus | quote }}
      memory: {{ $memory.limit }}
    limits:
      cpu: {{ .root.Values.cpus | quote }}
      memory: {{ $memory.limit }}
  securityContext:
    {{- include "microgranite.unprivileged" .root | nindent 4 }}
  volumeMounts:
    - name: model
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end -}}

{{- /* Downloads the model, and packs and verifies it if asked. */ -}}
{{- define "microgranite.initContainers" -}}
{{- $download := .Values.model.download -}}
{{- if $download.pack -}}
{{- /* A pod that is started again on its node finds the folder, and replaces it. */ -}}
{{- $pack := list "quantize" $download.reference "--output=/models/packed" "--force" (printf "--rounding=%s" $download.rounding) -}}
{{ include "microgranite.initContainer" (dict "root" . "name" "pack" "args" $pack) }}
{{ include "microgranite.initContainer" (dict "root" . "name" "verify" "args" (list "inspect" "/models/packed" "--verify")) }}
{{- else -}}
{{ include "microgranite.initContainer" (dict "root" . "name" "download" "args" (list "pull" $download.reference)) }}
{{- end -}}
{{- end -}}
