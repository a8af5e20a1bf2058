#!/usr/bin/env bash
# Checks dev/lesson/README.md and its pictures against the committed rows.
#   dev/lesson/check.sh               everything; trains one of the runs again, bit for bit
#   dev/lesson/check.sh statements    the page's statements alone
#   dev/lesson/check.sh write DIR     takes rows and pictures from a finished lesson in DIR
# Each statement is a line of statements() below: its figures come from the rows, and the page has
# to have these words. Every statement is shown to fail on some planted row.
set -u
cd "$(dirname "$0")/../.." || exit 1
export LC_ALL=C
. dev/lesson/rows.sh
page=dev/lesson/README.md data=dev/lesson failed=0
wrong() {
  echo "FAIL $*"
  failed=1
}
row() { value "$data/rows.tsv" "$1" "$2"; } # RUN, COLUMN
loss() { printf '%.4f' "$(row "$1" val_loss)"; }
cell() { value "$data/$1.tsv" "$2" "$3"; } # PICTURE, ROW, COLUMN
short() { printf '%.*f' "$1" "$2"; }        # digits behind the point, number

# FORMAT, VALUE..: the page has this text
says() {
  local text
  # shellcheck disable=SC2059 # the format is a statement
  text=$(printf "$@")
  fragments+=$text$'\n'
  if [[ $page_text != *"$text"* ]]; then echo "FAIL says $1"; else echo "ok says $1"; fi
}
# NAME, LEFT, < or >, RIGHT: a direction that the page states
holds() {
  if awk -v a="$2" -v b="$4" -v sign="$3" \
    'BEGIN { exit !(a + 0 == a && b + 0 == b && (sign == ">" ? a > b : a < b)) }'; then
    echo "ok holds $1"
  else
    echo "FAIL holds $1 ($2 $3 $4)" # the parentheses are cut off where names are compared
  fi
}

# The page's statements, a line each: where their figures come from.
statements() {
  local matrix step scale line underflow=no-scale-underflow
  says "it ends at %s nats a byte. BF16 ends at %s" "$(loss no-scale)" "$(loss bf16)"
  holds "no scale does not train" "$(loss no-scale)" ">" 2.9
  holds "BF16 trains" "$(loss bf16)" "<" 2.3
  says "attproj and fcproj underflow to zero: %s%%." "$(row no-scale flushed_dy)"
  for matrix in attproj fcproj; do
    holds "all of dy underflows: $matrix" "$(cell pictures/$underflow 1.$matrix dy)" ">" 99.9
  done
  for matrix in qkv fc; do
    holds "only zeros: $matrix" "$(cell pictures/$underflow 0.$matrix dy | tr - 0)" "<" 1
  done
  says "in step 300 is %s" "$(row no-scale amax_dy)"
  holds "below half of E4M3's smallest" "$(row no-scale amax_dy)" "<" 0.0009765625
  says "At most %s%% of any w and %s%% of any x underflow" \
    "$(short 1 "$(row no-scale flushed_w)")" "$(short 1 "$(row no-scale flushed_x)")"
  says "The run ends at %s. A loss scale" "$(loss loss-scale)"
  holds "a loss scale mends it" "$(loss loss-scale)" "<" 2.3

  says "They end at %s and %s." "$(loss fp8)" "$(loss current)"
  says "tell them from BF16's %s" "$(loss bf16)"
  holds "one scale a tensor mends it" "$(loss fp8)" "<" 2.3
  holds "own amax mends it" "$(loss current)" "<" 2.3
  says "operands lie between %s and %s" "$(row fp8 scale_min)" "$(row fp8 scale_max)"
  says "At most %s%% of any operand underflows" "$(short 3 "$(row fp8 flushed_x)")"
  holds "x underflows most: w" "$(row fp8 flushed_w)" "<" "$(row fp8 flushed_x)"
  holds "x underflows most: dy" "$(row fp8 flushed_dy)" "<" "$(row fp8 flushed_x)"

  says "step 40 grows by %s. Under own amax it grows by %s" \
    "$(short 4 "$(cell pictures/spike-loss 40 "$with_history")")" \
    "$(short 4 "$(cell pictures/spike-loss 40 "$with_own_amax")")"
  says "saturates (%s%% of the values)" "$(short 2 "$(cell spike delayed saturated)")"
  says "up to %s%% of the values underflow" "$(short 2 "$(cell spike delayed flushed)")"
  holds "own amax does not saturate" "$(cell spike current saturated)" "<" 0.01
  for step in 41 56; do
    scale=$(cell pictures/spike-scale $step "$with_history")
    holds "the history remembers: step $step" "$scale" "<" 1
  done
  holds "the history has forgotten" "$(cell pictures/spike-scale 57 "$with_history")" ">" 50
  holds "own amax: step 40" "$(cell pictures/spike-scale 40 "$with_own_amax")" "<" 1
  holds "own amax: step 41" "$(cell pictures/spike-scale 41 "$with_own_amax")" ">" 50

  says "of x is %s dB in E4M3 and %s dB in E5M2" "$(short 1 "$(row fp8 sqnr_x)")" \
    "$(short 1 "$(row x-e5m2 sqnr_x)")"
  holds "6 dB a bit: x" "$(minus "$(row fp8 sqnr_x)" "$(row x-e5m2 sqnr_x)")" ">" 5.5
  holds "6 dB a bit: w" "$(minus "$(row fp8 sqnr_w)" "$(row w-e5m2 sqnr_w)")" ">" 5.5
  holds "6 dB a bit: dy" "$(minus "$(row e4m3 sqnr_dy)" "$(row fp8 sqnr_dy)")" ">" 5.5
  says "E4M3 ends at %s and E5M2 at %s." "$(loss range-e4m3)" "$(loss range-e5m2)"
  holds "range decides: E4M3" "$(loss range-e4m3)" ">" 2.9
  holds "range decides: E5M2" "$(loss range-e5m2)" "<" 2.3
  says "end at %s (default), %s (\`e4m3\`), %s (\`x:e5m2\`) and %s (\`w:e5m2\`)" "$(loss fp8)" \
    "$(loss e4m3)" "$(loss x-e5m2)" "$(loss w-e5m2)"
  says "FP8 ends above BF16 by %s, and with x in E5M2 by %s." "$(found fp8)" \
    "$(found "fp8 --recipe x:e5m2")"
  reading_statements
  says "above BF16 by %s, and with \`--bf16 0.qkv.fprop\` by %s (six" \
    "$(found fp8 | cut -d ' ' -f 1)" "$(found "fp8 --bf16 0.qkv.fprop")"
  while read -r line; do says "%s" "$line"; done < <(page_tables)
}
found() { gap_text $findings-runs.tsv bf16 "$1"; }
reading_statements() {
  local rows=$data/read.tsv qkv="fp8 --bf16 0.qkv.fprop" fc="fp8 --bf16 0.fc.fprop" mean low high
  says "| FP8 | %s | |" "$(gap_text "$rows" bf16 fp8 | sed 's/ / | /')"
  says "product in BF16 | %s | %s%% |" "$(gap_text "$rows" bf16 "$qkv" | sed 's/ / | /')" \
    "$(won_back "$rows" "$qkv")"
  says "(a placebo) | %s | %s%% |" "$(gap_text "$rows" bf16 "$fc" | sed 's/ / | /')" \
    "$(won_back "$rows" "$fc")"
  read -r mean low high < <(gap "$rows" bf16 fp8)
  holds "reading in FP8 costs something" "$low" ">" 0
  holds "qkv makes nearly all of it" "$(won_back "$rows" "$qkv")" ">" 80
  holds "the placebo does not" "$(won_back "$rows" "$fc")" "<" 20
  says "by up to %s, x in E5M2 by up to %s." "$(largest_change 1)" "$(largest_change 2)"
  holds "E5M2 moves more" "$(largest_change 2)" ">" "$(largest_change 1)"
}
largest_change() { # PANEL of the heads' table
  awk -F '\t' -v panel="$1" '/^[0-9]/ && $1 == panel { for (i = 2; i <= NF; i++) {
      v = $i < 0 ? -$i : $i
      if ($i != "-" && v > top) top = v } }
    END { printf "%.3f\n", top }' "$data/pictures/cost-head.tsv"
}
# The rows of the page's tables, as they have to stand there
# shellcheck disable=SC2016 # no commands
page_tables() {
  local name
  {
    for name in $lesson_runs; do printf '%s\n' "$(table_row "$data/rows.tsv" "$name")"; done
    findings_table | tail -n +2
  } | sed 's/\t/` | /; s/\t/ | /g; s/^/| `/; s/$/ |/; s/  */ /g'
}

# Every number of the page with a decimal point stands in a statement, or in what defines FP8.
uncovered() {
  local number
  # shellcheck disable=SC2016 # no commands
  sed '/^```/,/^```/d; s/]([^)]*)//g; s/`[^`]*`//g' $page | grep -oE '[0-9]+\.[0-9]+' | sort -u |
    while read -r number; do
      grep -qF -- "$number" <<< "$fragments"$'\n'"2^-10 = 0.000977" || echo "$number"
    done
}

# Wrong cells are planted into every file of rows: every second or ninth row, or every third column,
# is multiplied by 0.01, or by 1000 with 1 added. Each statement has to fail on one of these.
planted() {
  local good=$1 which factor file statement count=0
  : > build/lesson/failed
  data=build/lesson/planted
  findings=$data/shakespeare
  mkdir -p $data/pictures
  for which in row,2,0 row,2,1 row,9,0 column,3,0 column,3,1 column,3,2; do
    for factor in 1000 0.01; do
      for file in {rows,read,spike}.tsv pictures/{no-scale-underflow,spike-loss,spike-scale}.tsv \
        pictures/cost-head.tsv shakespeare-{runs,summary}.tsv; do
        plant $which $factor "$file" > "$data/$file"
      done
      statements | sed -n 's/ ([^(]*)$//; s/^FAIL //p' >> build/lesson/failed
    done
  done
  while read -r _ statement; do
    grep -qxF -- "$statement" build/lesson/failed || wrong "no planted row fails: $statement"
    count=$((count + 1))
  done <<< "$good"
  echo "$count statements, each fails on a planted row"
}
plant() { # row or column,DIVISOR,REMAINDER, FACTOR, FILE
  local from=dev/lesson/$3 labels=1
  case $3 in
  shakespeare*) from=dev/findings/shakespeare-recipes-d2${3#shakespeare} ;;
  esac
  case $3 in
  read.tsv | shakespeare-runs.tsv) labels=2 ;;
  esac
  awk -F '\t' -v OFS='\t' -v which="$1" -v factor="$2" -v labels=$labels '
    BEGIN { split(which, part, ",") }
    /^#/ || !head++ { print; next }
    { row++
      for (i = labels + 1; i <= NF; i++)
        if ((part[1] == "row" ? row : i) % part[2] == part[3] && $i ~ /^[-+0-9.e]+$/)
          $i = $i * factor + (factor > 1)
      print }' "$from"
}

# ---- what is committed
pictures_again() {
  local table count=0
  for table in dev/lesson/pictures/*.tsv; do
    build/lesson/picture "$table" build/lesson/again.svg > build/lesson/again.txt ||
      wrong "$table: cannot be drawn"
    cmp build/lesson/again.svg "${table%.tsv}.svg" || wrong "${table%.tsv}.svg is another picture"
    grep -qF "(pictures/$(basename "$table" .tsv).svg)" $page || wrong "$page does not show $table"
    count=$((count + 1))
  done
  echo "$count pictures are made of their tables again, byte for byte"
}
run_again() { # NAME: trains a run again; its row is the committed one
  local out=build/lesson/again
  rm -rf $out
  mkdir -p $out
  # shellcheck disable=SC2046 # a command is words
  $(row "$1" command) -o "$out/$1" > "$out/$1.out" || wrong "$1: $(tail -1 "$out/$1.out")"
  row "$1" command > "$out/$1/command"
  rows_of $out > $out/rows.tsv
  cmp <(tail -1 $out/rows.tsv) <(grep "^$1"$'\t' dev/lesson/rows.tsv) ||
    wrong "$1: another row: $(tail -1 $out/rows.tsv)"
  shares_of "$out/$1/scales.tsv" |
    cmp - <(grep -v '^#' dev/lesson/pictures/no-scale-underflow.tsv) || wrong "$1: other shares"
  echo "$1 was trained again: the same row and the same shares, to the last digit"
}

case ${1:-all} in
write)
  if [ ! -s "${2:-}/rows.tsv" ]; then
    echo "dev/lesson/check.sh: write: expected the directory of a lesson, found '${2:-}'" >&2
    exit 2
  fi
  mkdir -p dev/lesson/pictures
  cp "$2"/{rows,spike}.tsv dev/lesson
  for file in "$2"/*.svg; do cp "$file" "${file%.svg}.tsv" dev/lesson/pictures; done
  exit 0
  ;;
all | statements) ;;
*)
  echo "dev/lesson/check.sh: expected statements or write DIR, found '$1'" >&2
  exit 2
  ;;
esac
mkdir -p build/lesson
page_text=$(tr '\n' ' ' < $page | tr -s ' ')
fragments=""
statements > build/lesson/statements
grep '^FAIL' build/lesson/statements && failed=1
for number in $(uncovered); do wrong "$page: no statement has the number $number"; done
grep -c '^ok' build/lesson/statements
if [ "${1:-all}" = all ]; then
  good=$(sed 's/ ([^(]*)$//' build/lesson/statements)
  (planted "$good"; exit $failed) || failed=1
  pictures_again
  run_again no-scale
fi
[ $failed = 0 ] && echo "the lesson's page and pictures are those of its rows"
exit $failed
