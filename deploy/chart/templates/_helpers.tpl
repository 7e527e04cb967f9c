{{- define "hayloft.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{- /* "true" if the registry is in an object store, else empty. */ -}}
{{- define "hayloft.remoteRegistry" -}}
{{- if contains "://" .Values.registry.url }}true{{ end -}}
{{- end -}}

{{- define "hayloft.replicas" -}}
{{- $remote := include "hayloft.remoteRegistry" . -}}
{{- $replicas := .Values.controller.replicas -}}
{{- if kindIs "invalid" $replicas -}}
{{- ternary 2 1 (eq $remote "true") -}}
{{- else if and (gt (int $replicas) 1) (not $remote) -}}
{{- fail (printf "controller.replicas: %d replicas need one registry for all of them, and registry.url is a directory of a node (%s). Set registry.url to a prefix in an object store, such as s3://my-bucket/hayloft-registry" (int $replicas) .Values.registry.url) -}}
{{- else -}}
{{- int $replicas -}}
{{- end -}}
{{- end -}}

{{- /* A value of a setting as text; numbers of values files are floating-point numbers. */ -}}
{{- define "hayloft.text" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{- define "hayloft.resources" -}}
{{- if or .requests .limits -}}
resources:
  {{- with .requests }}
  requests:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .limits }}
  limits:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- /* Of a process that serves CSI: liveness, and readiness unless livenessprobe answers, which knows none. */ -}}
{{- define "hayloft.probes" -}}
ports:
  - name: healthz
    containerPort: 9808
livenessProbe:
  httpGet:
    path: /healthz
    port: healthz
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 5
{{- if not .Values.sidecars.livenessProbe }}
readinessProbe:
  httpGet:
    path: /readyz
    port: healthz
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
{{- end -}}

{{- /* Node plugin, daemon and keeper run on the same nodes. */ -}}
{{- define "hayloft.nodeAffinity" -}}
{{- if and (not .Values.nodes.all) (not .Values.nodes.labels) -}}
{{- fail "nodes.labels: no label is given, so that the driver would run on no node. Name a label of the nodes, or set nodes.all to true" -}}
{{- end -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      {{- range ternary (list nil) .Values.nodes.labels .Values.nodes.all }}
      - matchExpressions:
          - key: kubernetes.io/os
            operator: In
            values: [linux]
          - key: hayloft.dev/node
            operator: NotIn
            values: ["false"]
          {{- with . }}
          - key: {{ .key }}
            operator: {{ .operator }}
            {{- with .values }}
            values: {{ toJson . }}
            {{- end }}
          {{- end }}
      {{- end }}
{{- end -}}

{{- /* Annotations of a pod template; the checksum restarts the pods when a setting changes. */ -}}
{{- define "hayloft.podAnnotations" -}}
{{- $annotations := .further | default dict -}}
{{- if .root.Values.restartOnChange -}}
{{- $annotations = merge (dict "checksum/config" (include (print .root.Template.BasePath "/config.yaml") .root | sha256sum)) $annotations -}}
{{- end -}}
{{- with $annotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Flags by which the sidecars of the controllers elect leaders. */}}
{{- define "hayloft.leaderElection" -}}
- --leader-election
- --leader-election-namespace=$(NAMESPACE)
{{- with .Values.leaderElection }}
# A sidecar that is ended in order releases its lease; that of one that was killed runs out.
- --leader-election-lease-duration={{ .leaseDuration }}
- --leader-election-renew-deadline={{ .renewDeadline }}
- --leader-election-retry-period={{ .retryPeriod }}
{{- end }}
{{- end }}

{{/* What the sidecars of the controller have in common. */}}
{{- define "hayloft.sidecar" -}}
env:
  - name: NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  limits:
    memory: 256Mi
volumeMounts:
  - name: socket-dir
    mountPath: /csi
{{- end }}
