/*
The trainer's FP8 conversions against NVIDIA's own, <cuda_fp8.h>, which computes on the host without
a GPU: every 4099th float, all codes' neighbourhoods, zeros, denormals, infinities and NaN, both
formats, both ways. From the root, after dev/cuda/test.sh fp8:

    g++ -std=c++17 -O2 -I CUDA/include dev/cuda/check_cuda_fp8.cpp build/cuda/reference_fp8.o
build/cuda/main_*.o -fopenmp -lm -o check && ./check

E5M2's NaN is left out: the header's host code keeps a payload there, its device code (one
instruction) gives 0x7F, as the trainer.
*/
#include <cuda_fp8.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "reference.h"

static long checked, differ[2];
static void check(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    checked++;
    for (int d = 0; d < 2; d++) {
        if (d == 1 && f != f) continue;
        const uint8_t theirs = __nv_cvt_float_to_fp8(f, __NV_SATFINITE, d ? __NV_E5M2 : __NV_E4M3);
        const uint8_t ours = (uint8_t)ref_encode(f, d ? 4 : 3); // Dtype: E4M3 is 3, E5M2 4
        if (theirs != ours && differ[d]++ < 3)
            printf("%s of %g (%08x): ours %02x, theirs %02x\n", d ? "E5M2" : "E4M3", f, bits, ours,
                   theirs);
    }
}

int main() {
    long wrong = 0;
    for (uint64_t i = 0; i < (uint64_t)1 << 32; i += 4099) check((uint32_t)i);
    for (int d = 0; d < 2; d++)
        for (int code = 0; code < 256; code++) {
            const __half_raw half =
                __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)code, d ? __NV_E5M2 : __NV_E4M3);
            const float theirs = __half2float(__half(half)),
                        ours = ref_decode((uint8_t)code, d ? 4 : 3);
            wrong += !(theirs == ours || (theirs != theirs && ours != ours));
            uint32_t bits;
            memcpy(&bits, &ours, 4);
            for (int i = -3; i <= 3; i++)
                check(bits + (uint32_t)i); // at codes, and halfway to the next ones
            for (int i = -3; i <= 3; i++) check(bits + (1u << (d ? 20 : 19)) + (uint32_t)i);
        }
    printf("%ld floats: %ld codes of E4M3 and %ld of E5M2 differ from cuda_fp8.h's; %ld of 512 "
           "values\n",
           checked, differ[0], differ[1], wrong);
    return differ[0] + differ[1] + wrong != 0;
}
