{{- define "secagg.labels" -}}
app.kubernetes.io/name: secagg
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "secagg.selector" -}}
app.kubernetes.io/name: secagg
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "secagg.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "secagg.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: ["ALL"]}
env:
  - name: SECAGG_DATABASE_URL
    valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: database-url}}
  - name: SECAGG_OPERATOR_TOKEN
    valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: operator-token}}
  - name: SECAGG_LEDGER_NAME
    value: {{ .Values.ledgerName | quote }}
  - name: SECAGG_BLOB_URL
    value: {{ .Values.blobUrl | quote }}
  - name: AWS_ACCESS_KEY_ID
    valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: aws-access-key-id, optional: true}}
  - name: AWS_SECRET_ACCESS_KEY
    valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: aws-secret-access-key, optional: true}}
  - name: AWS_REGION
    value: {{ .Values.s3.region | quote }}
  {{- with .Values.s3.endpoint }}
  - name: AWS_ENDPOINT_URL
    value: {{ . | quote }}
  {{- end }}
  - name: SECAGG_SHUTDOWN_WAIT_S
    value: {{ .Values.shutdownWaitSeconds | quote }}
  {{- if .Values.tlsSecret }}
  - name: SECAGG_TLS_CERTIFICATE
    value: /etc/secagg/tls/tls.crt
  - name: SECAGG_TLS_KEY
    value: /etc/secagg/tls/tls.key
  {{- end }}
  {{- if .Values.ingress.enabled }}
  - name: SECAGG_BEHIND_PROXY
    value: "true"
  - name: SECAGG_CONNECTIONS_PER_ADDRESS
    value: "8192"
  {{- end }}
  {{- range $name, $value := .Values.settings }}
  - name: SECAGG_{{ $name | upper }}
    value: {{ $value | quote }}
  {{- end }}
volumeMounts:
  - {name: data, mountPath: /var/lib/secagg}
  - {name: keys, mountPath: /var/lib/secagg-keys, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.tlsSecret }}
  - {name: tls, mountPath: /etc/secagg/tls, readOnly: true}
  {{- end }}
{{- end }}

{{- define "secagg.volumes" -}}
- name: tmp
  emptyDir: {}
- name: keys
  secret:
    secretName: {{ .Values.existingSecret }}
    defaultMode: 0440
    items:
      - {key: task.key, path: task.key}
      - {key: ledger.key, path: ledger.key}
      - {key: sealing.keys, path: sealing.keys}
{{- if .Values.tlsSecret }}
- name: tls
  secret: {secretName: {{ .Values.tlsSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}
