#!/usr/bin/env bash
# shellcheck disable=SC2086 # faults and recipes are words
# What every recipe makes of every fault, as a table: dev/lab/outcomes.sh [trainer's options]
# Layer 1 of d2, broken in step 40 of 60. A cell: the largest difference in loss to the unbroken run, and the largest saturated and
# flushed shares of the operand in and after the step, in percent, where they exceed 0.05%; or that the run stopped, or refused.
cd "$(dirname "$0")/../.." || exit 1
make -s build/lab/inject || exit 1
recipes="delayed te current deepseek mx none"
echo "| fault | ${recipes// / | } |"
echo "|---$(printf "|---%.0s" $recipes)|"
for fault in "zero fc.x" "zero fc.w" "spike fc.x" "spike fc.w" "nan fc.x" "nan fc.w" "flip fc.w" "stale fc.x" "stale fc.w" "stale fc.dy"; do
  printf '| %s |' "$fault"
  for recipe in $recipes; do
    read -r name operand <<< "$fault"
    build/lab/inject "$name" 40 1 "$operand" -e d2 -x 60 -t 128 -b 2 --recipe "$recipe" "$@" 2>&1 | awk -F '\t' '
      /only a rule that remembers/ { text = "refused" }
      /^stopped/ { text = "stopped, weights unharmed" }
      /^losses apart/ { split($0, word, " "); text = word[8] }
      /^nothing/ { text = "0" }
      /^[0-9]/ && $1 >= 40 { if ($8 + 0 > cut) cut = $8 + 0; if ($9 + 0 > gone) gone = $9 + 0 }
      END { if (text == "") text = "failed: " $0
        if (text ~ /^[0-9]/) text = sprintf("%.3f", text) (cut > 0.05 ? sprintf(", %.1f%% cut", cut) : "") (gone > 0.05 ? sprintf(", %.1f%% flushed", gone) : "")
        printf " %s |", text }'
  done
  echo
done
