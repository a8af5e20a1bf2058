# shellcheck shell=bash
# What dev/lesson's scripts share: rows and tables from the logs of runs, and figures from rows.
# It runs nothing itself.
lesson_runs="bf16 no-scale loss-scale fp8 current e4m3 x-e5m2 w-e5m2 range-e4m3 range-e5m2"
with_history="fp8 (delayed: amax of 16 steps)" # as legends have it
with_own_amax="fp8 --recipe current (own amax)"

# ---- from logs
# LOG: the last validation loss
val_loss() { awk -F '\t' '/^[0-9]/ && $4 ~ /^[0-9]/ { loss = $4 } END { print loss }' "$1"; }
# DIR..: a row for each run: the last rows of its log.tsv and scales.tsv. Shares are in percent and
# the largest of any matrix, SQNR is the mean over the matrices in dB, amax_dy the largest.
rows_of() {
  printf 'run\tcommand\tval_loss\tflushed_x\tflushed_w\tflushed_dy\tsaturated\tsqnr_x\tsqnr_w\t'
  printf 'sqnr_dy\tamax_dy\tscale_min\tscale_max\tkept_mib\n'
  local name
  for name in $lesson_runs; do
    [ -e "$1/$name/log.tsv" ] || continue
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$(cat "$1/$name/command")" \
      "$(val_loss "$1/$name/log.tsv")" "$(scales_row "$1/$name/scales.tsv")" \
      "$(sed -n 's/^# memory.*activations kept[^0-9]*\([0-9.]*\).*/\1/p' "$1/$name/log.tsv")"
  done
}
scales_row() {
  if [ ! -e "$1" ]; then
    printf -- '-\t-\t-\t-\t-\t-\t-\t-\t-\t-'
    return
  fi
  awk -F '\t' -v OFS='\t' '/^#/ || $1 == "step" { next }
    $1 != step {
      step = $1
      low = high = cut = big = 0
      split("", top)
      split("", sum)
      split("", n)
    }
    { split($3, part, "."); o = part[2]
      if ($7 > top[o]) top[o] = $7
      if ($6 > cut) cut = $6
      if (o == "dy" && $4 > big) big = $4
      if ($9 ~ /[0-9]/) { sum[o] += $9; n[o]++ }
      if (!low || $5 < low) low = $5
      if ($5 > high) high = $5 }
    function share(v) { return sprintf("%.4g", 100 * v) }
    function mean(o) { return n[o] ? sprintf("%.2f", sum[o] / n[o]) : "-" }
    END { print share(top["x"]), share(top["w"]), share(top["dy"]), share(cut), mean("x"),
      mean("w"), mean("dy"), sprintf("%.4g", big), sprintf("%.4g", low),
      sprintf("%.4g", high) }' "$1"
}
# DIR, NAME=LABEL..: the validation losses of runs by step, from step 50 on
curves_of() {
  local dir=$1 pair files=() labels=step
  shift
  for pair in "$@"; do
    files+=("$dir/${pair%%=*}/log.tsv")
    labels+=$'\t'${pair#*=}
  done
  printf '%s\n' "$labels"
  awk -F '\t' 'FNR == 1 { file++ }
    /^[0-9]/ && $1 >= 50 && $4 ~ /^[0-9]/ { if (file == 1) steps[++n] = $1; loss[file, $1] = $4 }
    END { for (i = 1; i <= n; i++) {
        line = steps[i]
        for (k = 1; k <= file; k++)
          line = line "\t" ((k, steps[i]) in loss ? sprintf("%.5f", loss[k, steps[i]]) : "-")
        print line } }' "${files[@]}"
}
# scales.tsv: percent of x, w and dy that underflow in the last step, by matrix; zeros have none
shares_of() {
  printf 'matrix\tx\tw\tdy\n'
  awk -F '\t' '/^[0-9]/ { split($3, part, "."); name = $2 "." part[1]
      if (!(name in seen)) { seen[name] = 1; names[++n] = name }
      share[name, part[2]] = $4 == 0 ? "-" : sprintf("%.3f", 100 * $7) }
    END { for (i = 1; i <= n; i++)
        print names[i] "\t" share[names[i], "x"] "\t" share[names[i], "w"] "\t" \
          share[names[i], "dy"] }' "$1"
}
dy_shares_of() { # DIR, NAME=LABEL, NAME=LABEL
  printf 'matrix\t%s\t%s\n' "${2#*=}" "${3#*=}"
  paste <(shares_of "$1/${2%%=*}/scales.tsv") <(shares_of "$1/${3%%=*}/scales.tsv") |
    awk -F '\t' 'NR > 1 { print $1 "\t" $4 "\t" $8 }'
}
# scales.tsv: four scales by step
scales_by_step() {
  printf 'step\t0.qkv.x\t0.qkv.w\t0.attproj.dy\t0.fc.dy\n'
  awk -F '\t' '$2 == 0 && /^[0-9]/ { scale[$3] = sprintf("%.6g", $5)
      if ($3 == "fcproj.dy") print $1 "\t" scale["qkv.x"] "\t" scale["qkv.w"] "\t" \
        scale["attproj.dy"] "\t" scale["fc.dy"] }' "$1"
}
# DIR, NAME=LABEL..: mean SQNR of x, w and dy
sqnr_of() {
  local dir=$1 pair operand labels=operand line
  shift
  for pair in "$@"; do labels+=$'\t'${pair#*=}; done
  printf '%s\n' "$labels"
  for operand in x w dy; do
    line=$operand
    for pair in "$@"; do line+=$'\t'$(value "$dir/rows.tsv" "${pair%%=*}" sqnr_$operand); done
    printf '%s\n' "$line"
  done
}
# DIR: the table of losses or scales around the spike, from what inject wrote for two recipes
spike_losses() {
  printf 'step\t%s\t%s\n' "$with_history" "$with_own_amax"
  paste "$1"/spike-{delayed,current}-{clean,broken}.tsv |
    awk -F '\t' '$1 >= 36 { printf "%d\t%.6f\t%.6f\n", $1, $9 - $2, $23 - $16 }'
}
spike_scales() {
  printf 'step\t%s\t%s\n' "$with_history" "$with_own_amax"
  paste "$1"/spike-{delayed,current}-broken.tsv |
    awk -F '\t' '$1 >= 36 { printf "%d\t%s\t%s\n", $1, $5, $12 }'
}
# A row of spike.tsv a recipe: percent of 1.fc.x that saturate in step 40, and that underflow after
spike_rows() {
  local recipe
  printf 'run\tsaturated\tflushed\n'
  for recipe in delayed current; do
    awk -F '\t' -v recipe=$recipe '$1 == 40 { cut = $6 } $1 > 40 && $7 > gone { gone = $7 }
      END { printf "%s\t%.4g\t%.4g\n", recipe, 100 * cut, 100 * gone }' \
      "$1/spike-$recipe-broken.tsv"
  done
}
# DIR, SEED..: losses of the models that are read, a row a reading
reads_of() {
  local dir=$1 seed way
  shift
  printf 'arm\tseed\tval_loss\n'
  for way in bf16 fp8 fp8-qkv fp8-fc; do
    for seed in "$@"; do
      printf '%s\t%s\t%s\n' "$(read_name $way)" "$seed" \
        "$(grep -o 'loss [0-9.]*' "$dir/read-$seed-$way" | tail -1 | cut -d ' ' -f 2)"
    done
  done
}
read_name() {
  case $1 in
  fp8-qkv) echo "fp8 --bf16 0.qkv.fprop" ;;
  fp8-fc) echo "fp8 --bf16 0.fc.fprop" ;;
  *) echo "$1" ;;
  esac
}

# ---- figures from rows
# FILE, ROW, COLUMN: a cell, by the name of its row and of its column
value() {
  awk -F '\t' -v row="$2" -v column="$3" '/^#/ { next }
    !head { head = 1; for (i = 1; i <= NF; i++) if ($i == column) at = i; next }
    $1 == row && at { print $at; found = 1; exit }
    END { if (!found) print "none" }' "$1"
}
# FILE, REFERENCE, ARM: mean gap, and both ends of its 95% interval by Student's t, paired by seed
gap() {
  awk -F '\t' -v reference="$2" -v arm="$3" '
    BEGIN { split("12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201", t, " ") }
    $1 == reference { base[$2] = $3 }
    $1 == arm { loss[$2] = $3 }
    END { for (s in loss) if (s in base) { d = loss[s] - base[s]; n++; sum += d; squares += d * d }
      if (n < 2) { print "none none none"; exit }
      mean = sum / n
      half = t[n - 1] * sqrt((squares - n * mean * mean) / (n - 1) / n)
      printf "%+.4f %+.4f %+.4f\n", mean, mean - half, mean + half }' "$1"
}
gap_text() {
  local mean low high
  read -r mean low high < <(gap "$@")
  echo "$mean [$low, $high]"
}
# FILE, ARM: percent of FP8's gap to BF16 that an arm wins back
won_back() {
  local fp8 arm
  fp8=$(gap "$1" bf16 fp8)
  arm=$(gap "$1" bf16 "$2")
  awk -v a="${fp8%% *}" -v b="${arm%% *}" 'BEGIN { printf "%.0f\n", a ? 100 * (1 - b / a) : -1 }'
}
# ---- tables that are printed
aligned() { # columns of standard input, separated by tabs
  awk -F '\t' '{ if (NF > n) n = NF
      for (i = 1; i <= NF; i++) {
        cell[NR, i] = $i
        if (length($i) > w[i]) w[i] = length($i) } }
    END { for (r = 1; r <= NR; r++) { line = ""
        for (i = 1; i <= n; i++) line = line sprintf("%-" (w[i] + 2) "s", cell[r, i])
        sub(/ +$/, "", line); print line } }'
}
# DIR: loss, distance to BF16, memory and speed of each run
table_of() {
  local name
  printf 'run\tloss\tto bf16\tactivations, MiB\ttokens/s\n'
  for name in $lesson_runs; do
    printf '%s\t%s\n' "$(table_row "$1/rows.tsv" "$name")" "$(median_speed "$1/$name/log.tsv")"
  done
}
table_row() { # FILE, RUN
  local loss far=
  loss=$(value "$1" "$2" val_loss)
  [ "$2" = bf16 ] || far=$(minus "$loss" "$(value "$1" bf16 val_loss)")
  printf '%s\t%.4f\t%s\t%s' "$(arm_of "$1" "$2")" "$loss" "$far" "$(value "$1" "$2" kept_mib)"
}
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%+.4f", a - b }'; } # a - b
arm_of() { value "$1" "$2" command | sed 's/^\.\/train_gpt_//; s/ -e d2 -x 300 -v 25 -s 0//'; }
median_speed() { # tokens a second of a log's median step
  awk -F '\t' '/^[0-9]/ { print $9 }' "$1" | sort -n | awk '{ v[NR] = $1 }
    END { printf "%.0f\n", v[int((NR + 1) / 2)] }'
}
findings=dev/findings/shakespeare-recipes-d2
# The same from rows of six seeds: loss, gap with its interval, memory
findings_table() {
  local arm
  printf 'arm\tloss\tgap to bf16\t95%% interval\tpeak, MiB\n'
  for arm in bf16 fp8 "fp8 --bf16 0.qkv.fprop" "fp8 --recipe current" "fp8 --recipe e4m3" \
    "fp8 --recipe scale=1" "fp8 --recipe mx" "fp8 --recipe x:e5m2"; do
    printf '%s\t%.4f\t%s\t%s\n' "$arm" "$(value $findings-summary.tsv "$arm" loss)" \
      "$([ "$arm" = bf16 ] || gap_text $findings-runs.tsv bf16 "$arm" | sed 's/ /\t/')" \
      "$(value $findings-summary.tsv "$arm" peak_mib)"
  done | sed 's/^bf16\t\([^\t]*\)\t/bf16\t\1\t\t/'
}
