{{- /* Labels of each object. The generator of config removes those of Helm. */ -}}
{{- define "berth.labels" -}}
app.kubernetes.io/part-of: berth
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{- /* The image of a program: (list . "scheduler"). */ -}}
{{- define "berth.image" -}}
{{- $root := index . 0 -}}{{- $program := index . 1 -}}{{- $image := $root.Values.image -}}
{{- if and (not $image.registry) (ne $image.pullPolicy "Never") -}}
{{- fail "\n\nimage.registry is missing. Push the images to a registry (make push REGISTRY=registry.example.com) and set\n  --set image.registry=registry.example.com\nor import them on every node (docs/install.md) and set\n  --set image.pullPolicy=Never\n" -}}
{{- end -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- with $image.repository }}{{ . }}/{{ end -}}{{ $program }}
{{- with index $image.digest $program }}@{{ . }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "berth.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* GOMEMLIMIT from the limit of the scheduler's memory. */ -}}
{{- define "berth.goMemory" -}}
{{- $limit := dig "limits" "memory" "" .Values.scheduler.resources | toString -}}
{{- if $limit -}}
{{- if not (regexMatch "^[0-9]+(Mi|Gi)$" $limit) -}}
{{- fail (printf "\n\nscheduler.resources.limits.memory is %q: write it in Mi or Gi, such as 512Mi\n" $limit) -}}
{{- end -}}
{{- $mebibytes := regexFind "^[0-9]+" $limit | int -}}
{{- if hasSuffix "Gi" $limit -}}{{- $mebibytes = mul $mebibytes 1024 -}}{{- end -}}
{{- printf "%dMiB" (div (mul $mebibytes .Values.scheduler.goMemoryPercent) 100) -}}
{{- end -}}
{{- end -}}

{{- define "berth.openshift" -}}
{{- $scc := .Values.openshift.scc | toString -}}
{{- if or (eq $scc "true") (and (eq $scc "auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) -}}true{{- end -}}
{{- end -}}

{{- /* The account, rights and pod of a hook: (dict "root" . "name" ... ). */ -}}
{{- define "berth.hookPod" -}}
serviceAccountName: {{ .name }}
restartPolicy: Never
{{- with include "berth.pullSecrets" .root | trim }}{{ . | nindent 0 }}{{ end }}
{{- with .root.Values.scheduler.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.scheduler.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile:
    type: RuntimeDefault
containers:
- name: uninstall
  image: {{ include "berth.image" (list .root "nodeagent") }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
  {{- toYaml .args | nindent 2 }}
  {{- with .root.Values.scheduler.extraEnv }}
  env:
  {{- toYaml . | nindent 2 }}
  {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
{{- end -}}
