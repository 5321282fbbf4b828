{{- /*
The memory that a pod reserves, part by part, in bytes: the sum that the server itself makes before it loads a model (src/cli/serve/plan.rs).
Returns YAML.
*/ -}}
{{- define "microgranite.memory" -}}
{{- $known := .Files.Get "models.yaml" | fromYaml -}}
{{- $model := .Values.model -}}
{{- if not (or $model.shape (hasKey $known $model.known)) -}}
{{- fail (printf "model.known: %q is not among %s; give model.shape as `microgranite inspect REF --kubernetes` prints it" $model.known (keys $known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $shape := $model.shape | default (get $known $model.known) -}}
{{- $sequences := .Values.sequences -}}
{{- $batch := int64 $sequences.batch -}}
{{- $mebibyte := 1048576 -}}
{{- /* The KV cache is handed out in pages of 64 tokens, so every place in the batch may leave a part of one unused. */ -}}
{{- $pages := mul $batch (div (add (int64 $sequences.tokens) 63) 64) -}}
{{- $kvMiB := div (add (mul $pages (int64 $shape.kvPageBytes)) (sub $mebibyte 1)) $mebibyte -}}
{{- /* Two states for each place in the batch: short prompts run in places that long ones lend them. */ -}}
{{- $state := int64 $shape.stateBytes -}}
{{- $snapshots := int64 (ternary $sequences.batch $sequences.snapshots (lt (int $sequences.snapshots) 0)) -}}
{{- if not $state -}}{{- $snapshots = 0 -}}{{- end -}}
{{- $states := mul (add (mul 2 $batch) $snapshots) $state -}}
{{- $clients := .Values.limits -}}
{{- /* Buffers here and in the kernel, with the default --max-header; 64 more connections on the admin port. */ -}}
{{- $connections := mul (add (int64 $clients.connections) 64) 112 1024 -}}
{{- $requests := mul (int64 $clients.requestMemoryMiB) $mebibyte -}}
{{- /* A text takes 320 times its length while it is tokenized; up to 64 KiB are in the rest. */ -}}
{{- $reading := ternary (mul (int64 $clients.bodyKiB) 1024 320) 0 (gt (int64 $clients.bodyKiB) 64) -}}
{{- /* Tokenizer, activations, code and what the allocator keeps; rows above 128 in a step take their own. */ -}}
{{- $rest := add (mul 256 $mebibyte) (mul (max 0 (sub $batch 128)) (int64 $shape.stepRowBytes)) -}}
{{- $sum := add (int64 $shape.weightsBytes) (mul $kvMiB $mebibyte) $states $connections $requests $reading $rest -}}
{{- /* In steps of 64 MiB: a limit is easier to read, and a node loses nothing by it. */ -}}
{{- if gt (mul 4 (int64 $clients.bodyKiB)) (mul 1024 (int64 $clients.requestMemoryMiB)) -}}
{{- fail "limits.requestMemoryMiB: must be at least four times limits.bodyKiB" -}}
{{- end -}}
{{- $given := .Values.memory.limit -}}
{{- $givenMiB := mul (trimSuffix "Mi" (trimSuffix "Gi" $given) | int64) (ternary 1024 1 (hasSuffix "Gi" $given)) -}}
{{- if and $given (lt (mul $givenMiB $mebibyte) $sum) -}}
{{- fail (printf "memory.limit: %s is less than the %s that the server needs" $given (include "microgranite.mebibytes" $sum)) -}}
{{- end -}}
{{- $withHeadroom := div (mul $sum (add 100 (int64 .Values.memory.headroomPercent))) 100 -}}
{{- $limitMiB := mul 64 (div (add $withHeadroom (sub (mul 64 $mebibyte) 1)) (mul 64 $mebibyte)) -}}
weights: {{ int64 $shape.weightsBytes }}
pages: {{ $pages }}
kvMiB: {{ $kvMiB }}
kv: {{ mul $kvMiB $mebibyte }}
states: {{ $states }}
snapshots: {{ $snapshots }}
snapshotBytes: {{ mul $snapshots $state }}
isRecurrent: {{ gt $state 0 }}
connections: {{ $connections }}
requests: {{ $requests }}
reading: {{ $reading }}
rest: {{ $rest }}
sum: {{ $sum }}
limit: {{ $given | default (printf "%dMi" $limitMiB) }}
{{- end -}}

{{- /* Bytes as mebibytes for people, such as 2,455 MiB. */ -}}
{{- define "microgranite.mebibytes" -}}
{{ div (add (int64 .) 524288) 1048576 }} MiB
{{- end -}}
