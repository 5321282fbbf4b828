{{- /* The name of every object: the release's, with the chart's name unless it has it already. */ -}}
{{- define "microgranite.name" -}}
{{- if contains "microgranite" .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-microgranite" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- /* The labels that select the pods of this release. They never change. */ -}}
{{- define "microgranite.selector" -}}
app.kubernetes.io/name: microgranite
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- /* The labels of every object. */ -}}
{{- define "microgranite.labels" -}}
{{ include "microgranite.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: microgranite
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "microgranite.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* What the server is told to load. */ -}}
{{- define "microgranite.model" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.source "download") (not $model.download.pack) -}}
{{ $model.download.reference }}
{{- else if eq $model.source "download" -}}
/models/packed
{{- else -}}
/models/{{ (get $model $model.source).path }}
{{- end -}}
{{- end -}}

{{- /* What no container of a pod may do. */ -}}
{{- define "microgranite.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}
