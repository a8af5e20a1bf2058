#!/usr/bin/env bash
# The CUDA file is to be read beside the C file: the same section titles in the same order, and in sections 8 to 14 every function
# of the C file under its own name. Those that a GPU has no use for are listed here. Prints what differs; exit status 0 or 1.
set -eu
cd "$(dirname "$0")/../.."
titles() { grep -oE '^// ==== [0-9]+\. [A-Za-z0-9 ]+' "$1" | sed 's/ *$//'; }
functions() { # of sections 8 to 14
  sed -n '/^\/\/ ==== 8\./,/^\/\/ ==== 15\./p' "$1" | grep -oE '^(static|INLINE|DEVICE|int|__attribute__|template)[^=;(]*[ *]([a-z_0-9]+)\(' | grep -oE '[a-z_0-9]+\($' | tr -d '(' | sort -u
}
only_c="partial_count|attention_bytes|stored_from_floats|gpt_scale|gpt_forward"
only_c="$only_c|workspace_bytes|workspace_make|gradient_quantize|gradient_at"
only_c="$only_c|device_copy|device_read|device_write" # of section 2 there
diff <(titles train_gpt_fp8.c) <(titles train_gpt_fp8.cu) || { echo "the section titles differ"; exit 1; }
missing=$(comm -23 <(functions train_gpt_fp8.c) <(functions train_gpt_fp8.cu) | grep -vwE "$only_c" || true)
[ -z "$missing" ] || { echo "train_gpt_fp8.cu has no function of these names:" "$missing"; exit 1; }
echo "$(titles train_gpt_fp8.c | wc -l) sections, $(comm -12 <(functions train_gpt_fp8.c) <(functions train_gpt_fp8.cu) | wc -l) functions with the same names"
