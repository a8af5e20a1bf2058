#!/usr/bin/env bash
# macOS on Apple silicon and on Intel: the programs compile and link, by the clang of the Python
# package ziglang, which brings macOS's headers; nothing is run. aarch64: NEON's inner loop keeps
# its sums in registers. (dev/check_bits.sh trains on aarch64 under qemu, with the same bits.)
set -eu
. "$(dirname "$0")/env.sh"
flags=(-O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror)
mkdir -p build/platforms
build() { # target, precision, file
  "$python" -m ziglang cc -target "$1" "${flags[@]}" -Wno-error -Wno-unknown-pragmas \
    -DPRECISION="$2" "$3" -o build/platforms/program -lm || fail "$1: $3, precision $2"
}
for target in aarch64-macos x86_64-macos; do
  for precision in 0 1 2 3; do build $target $precision train_gpt_fp8.c; done
  for file in test_gpt.c test_program.c data/*.c dev/*.c dev/lab/*.c dev/eval/*.c dev/paper/*.c; do
    build $target 0 "$file"
  done
done
# With OpenMP, as Homebrew's libomp gives it: its header, which is the same everywhere.
mkdir -p build/platforms/omp
cp "$(find /usr/lib/llvm-*/lib/clang -name omp.h | head -1)" build/platforms/omp/
"$python" -m ziglang cc -target aarch64-macos "${flags[@]}" -Xpreprocessor -fopenmp \
  -Ibuild/platforms/omp -DPRECISION=0 -c train_gpt_fp8.c -o build/platforms/omp/object.o
[ "$(od -An -tx4 -N4 build/platforms/program)" = " feedfacf" ] # Mach-O, 64 bits
echo "ok   every program compiles and links for macOS, arm64 and x86-64"

# The loop of kernel_fp32 has multiply-adds of 4 lanes for each of the 24 sums, and moves none of
# them to the stack.
aarch64-linux-gnu-gcc "${flags[@]}" -fopenmp -DPRECISION=0 -c train_gpt_fp8.c \
  -o build/platforms/neon.o
aarch64-linux-gnu-objdump -d --no-show-raw-insn build/platforms/neon.o |
  awk '/<kernel_fp32>:/, /ret$/' > build/platforms/neon.txt
sed -n '/prfm/,/prfm/p' build/platforms/neon.txt
sums=$(grep -c 'fmla.*\.4s' build/platforms/neon.txt)
spills=$(grep -cE '(str|stp|ldr|ldp)[[:space:]]+q.*\[sp' build/platforms/neon.txt || true)
[ "$sums" -ge 24 ] || fail "NEON: expected 24 fmla or more in the kernel, found $sums"
[ "$spills" = 0 ] || fail "NEON: expected no sum on the stack, found $spills"
echo "ok   NEON: $sums fmla, no sum on the stack"
