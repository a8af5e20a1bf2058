# make                   the four trainers and the embedded corpus
# make help              this list
# make test              the tests in all four precisions, and on the portable path
# make test-exhaustive   the encoders on all 2^32 floats, all instruction sets here (minutes)
# make ladder            seven matrix products (dev/cpu), each faster, all with the same bits
# make compare           ARMS='fp16,fp8' SEEDS=5 RUN='-e d3 ..' OUT=DIR: dev/compare.c explains
# make curves            trains FP16, BF16 and FP8 (CURVES_RUN='-v 50'), draws the README's picture
# make build/watch       a page of running programs, for a browser here: build/watch DIR
# make lesson            FP8 training in ten minutes: dev/lesson/README.md
# make paper             the paper's tables at laptop size, 10 to 30 minutes; paper-full: hours
# make build/lab/NAME    a program of the laboratory, dev/lab/NAME.c
# make build/eval/NAME_P dev/eval/NAME.c in precision P: build/eval/hellaswag_fp8 and so on
# make cuda              the four trainers for an NVIDIA GPU: train_gpt_fp8cu and so on
# make test-cuda         the CUDA file's kernels on this CPU, against the C file; needs no GPU
# make bench             products and whole steps, timed, to dev/bench/RESULTS-MACHINE.md (many minutes)
# make flags             the compiler flags for scripts; also cuda-flags and nvcc-flags
# make clean             removes what make has built
# make PORTABLE=1        plain C for any CPU of the family: no -march=native
# make ARCH=x86-64-v3    another -march (x86-64-v3: AVX2 + FMA)
# make NO_OMP=1          one thread, no OpenMP
# make MPI=1             trainers of several processes: mpirun -np 4 ./train_gpt_fp8 ..
# make REFERENCE=1       with -DREFERENCE: the products by their short definition, slowly
# make SANITIZE=WORDS    address,undefined or thread
# make cuda GPU_ARCH=A   sm_89 and so on, native, or all (80 to 120) [this GPU's, or sm_90]
# make cuda USE_CUDNN=0  without cuDNN's attention; USE_CUDNN=1 makes its absence an error
# make cuda NCCL=1       several processes, a GPU each; with MPI=1 begun by mpirun

CC ?= cc
PRECISIONS = fp8 fp16 bf16 fp32
TRAINERS = $(PRECISIONS:%=train_gpt_%)
TESTS = $(PRECISIONS:%=test_gpt_%)

# $(call accepts,FLAG): FLAG if the compiler can build and link a program with it
accepts = $(shell echo 'int main(void) { return 0; }' | \
  $(CC) $(1) -Werror -x c - -o /dev/null 2>/dev/null && echo '$(1)')

ARCH ?= native
ifndef PORTABLE
MARCH := $(call accepts,-march=$(ARCH)) $(call accepts,-mprefer-vector-width=512)
endif
ifndef NO_OMP
OMP := $(call accepts,-fopenmp)
ifeq ($(OMP),) # Apple's clang has none, Homebrew's libomp has what it lacks
LIBOMP := $(shell brew --prefix libomp 2>/dev/null)
OMP := $(call accepts,-Xpreprocessor -fopenmp -I$(LIBOMP)/include -L$(LIBOMP)/lib -lomp)
endif
ifeq ($(OMP),)
$(warning $(CC) has no OpenMP here (clang needs libomp-dev, macOS `brew install libomp`): \
  the programs will use one thread)
endif
endif
ifdef SANITIZE
DEBUG = -g -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
endif
# No contraction and no -ffast-math: every operation is the one that is written.
NUMERICS = -ffp-contract=off -fno-math-errno -fno-trapping-math
# Without OpenMP its pragmas are comments.
WARN = -Wall -Wextra -Werror $(if $(OMP),,-Wno-unknown-pragmas) $(if $(SANITIZE),-Wno-error)
CFLAGS ?= -O3
ALL_CFLAGS = $(CFLAGS) $(MARCH) $(NUMERICS) $(WARN) $(OMP) $(DEBUG) $(if $(REFERENCE),-DREFERENCE)
LDLIBS = -lm
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

fp8_FLAGS = -DPRECISION=0
fp16_FLAGS = -DPRECISION=1
bf16_FLAGS = -DPRECISION=2
fp32_FLAGS = -DPRECISION=3

all: $(TRAINERS) data/tales.d/train.txt

# $(call keep,FILE,TEXT): FILE holds what binaries were built with. It is written when TEXT changes,
# and then they are built again. `make -n` writes nothing, and FILE may be missing then.
IS_DRY = $(findstring n,$(firstword -$(MAKEFLAGS)))
keep = $(if $(IS_DRY),,$(shell mkdir -p build && \
  printf '%s\n' '$2' | cmp -s - $1 || printf '%s\n' '$2' > $1))
FLAGS_FILE = build/flags
$(call keep,$(FLAGS_FILE),$(CC) $(ALL_CFLAGS))
$(FLAGS_FILE): ;

# MPI's compiler calls ours, with the paths of its own.
ifdef MPI
ifeq ($(shell command -v mpicc 2>/dev/null),)
$(error MPI=1: no mpicc was found; it comes with Open MPI (Debian: libopenmpi-dev) or MPICH)
endif
TRAINER_CC = OMPI_CC='$(CC)' MPICH_CC='$(CC)' mpicc -DUSE_MPI
else
TRAINER_CC = $(CC)
endif
$(call keep,build/trainer-flags,$(TRAINER_CC) $(ALL_CFLAGS))
build/trainer-flags: ;
$(TRAINERS): train_gpt_%: train_gpt_fp8.c build/trainer-flags
	$(TRAINER_CC) $(ALL_CFLAGS) $($*_FLAGS) -DCOMMIT='"$(COMMIT)"' $< -o $@ $(LDLIBS)

TEST_SOURCES = test_gpt.c train_gpt_fp8.c dev/check/counted.h dev/check/free.h dev/check/definitions.h
$(TESTS): test_gpt_%: $(TEST_SOURCES) $(FLAGS_FILE)
	$(CC) $(ALL_CFLAGS) $($*_FLAGS) $< -o $@ $(LDLIBS)

PORTABLE_TESTS = $(PRECISIONS:%=build/portable/test_gpt_%)
$(PORTABLE_TESTS): build/portable/test_gpt_%: $(TEST_SOURCES) $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(NUMERICS) $(WARN) $(OMP) $(DEBUG) $($*_FLAGS) $< -o $@ $(LDLIBS)

data/tales data/glyphs: data/%: data/%.c
	$(CC) -O2 -Wall -Wextra -Werror $< -o $@

# One call writes all three files. The first stands for them, unless another one is missing.
CORPUS = $(addprefix data/tales.d/,train.txt val.txt val.floor.tsv)
data/tales.d/train.txt: data/tales
	data/tales --out data/tales.d
ifneq ($(words $(wildcard $(CORPUS))),3)
.PHONY: data/tales.d/train.txt
endif

# Pictures for a small classifier. test.bin is written first.
GLYPHS = $(addprefix data/glyphs.d/,train.bin test.bin)
data/glyphs.d/train.bin: data/glyphs
	data/glyphs --out data/glyphs.d
ifneq ($(words $(wildcard $(GLYPHS))),2)
.PHONY: data/glyphs.d/train.bin
endif

# The tests of whole programs know nothing of the trainers' sources.
test_program: test_program.c
	$(CC) -O1 -Wall -Wextra -Werror $< -o $@ $(LDLIBS)
EXPLAIN = $(patsubst %.c,build/%,$(patsubst dev/%,%,$(wildcard dev/lab/explain.c)))

test: $(TRAINERS) $(TESTS) test_program build/portable/test_gpt_fp8 build/portable/test_gpt_fp32 $(EXPLAIN) data/tales.d/train.txt data/glyphs
	data/tales --selftest
	data/glyphs --selftest
	set -e; for t in $(TESTS) build/portable/test_gpt_fp8 build/portable/test_gpt_fp32; do echo "== $$t"; ./$$t; done
	set -e; for t in $(TRAINERS); do echo "== test_program $$t"; ./test_program $(EXPLAIN:%=--explain %) ./$$t; done

# Every encoder that the compiler can build and this machine can run, on every float.
HAS_AVX2 := $(shell grep -qw avx2 /proc/cpuinfo 2>/dev/null && echo yes)
build/avx2/test_gpt_fp8: $(TEST_SOURCES) $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -march=x86-64-v3 $(NUMERICS) $(WARN) $(OMP) $(DEBUG) $(fp8_FLAGS) $< -o $@ \
	  $(LDLIBS)

test-exhaustive: test_gpt_fp8 build/portable/test_gpt_fp8 $(if $(HAS_AVX2),build/avx2/test_gpt_fp8)
	set -e; for t in $^; do echo "== $$t"; ./$$t --exhaustive; done

# From three loops to the trainer's own product, an idea at a time.
build/ladder: dev/cpu/ladder.c $(wildcard dev/cpu/*.c) train_gpt_fp8.c $(FLAGS_FILE)
	$(CC) $(ALL_CFLAGS) $(fp8_FLAGS) $< -o $@ $(LDLIBS)
ladder: build/ladder
	build/ladder

# Arms with the same seeds and data, and whether their losses differ; dev/compare.c says what ARMS, SEEDS, RUN and OUT may be.
ARMS = fp16,bf16,fp8,fp8 --recipe scale=1
SEEDS = 5
RUN = -e d3 -x 400 -v 50
OUT = log/compare
build/compare: dev/compare.c train_gpt_fp8.c $(FLAGS_FILE)
	$(CC) $(ALL_CFLAGS) $(fp8_FLAGS) $< -o $@ $(LDLIBS)
build/watch: dev/watch.c dev/compare.c train_gpt_fp8.c $(FLAGS_FILE)
	$(CC) $(ALL_CFLAGS) $(fp8_FLAGS) $< -o $@ $(LDLIBS)
# Small programs that take the trainer's file apart; the first lines of each say what it shows.
build/lab/%: dev/lab/%.c dev/lab/lab.h train_gpt_fp8.c $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(fp8_FLAGS) $< -o $@ $(LDLIBS)
# $(call flags_of,NAME_PRECISION)
flags_of = $(or $($(lastword $(subst _, ,$1))_FLAGS),$(error $@: NAME_P, P one of $(PRECISIONS)))
# What measures a model file, in every precision: build/eval/hellaswag_fp8 and so on.
build/eval/%: $(wildcard dev/eval/*.c) train_gpt_fp8.c $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(call flags_of,$*) dev/eval/$(firstword $(subst _, ,$*)).c -o $@ $(LDLIBS)
# The lesson of dev/lesson, and what draws its pictures.
LESSON_OUT = log/lesson
build/lesson/%: dev/lesson/%.c dev/lab/lab.h train_gpt_fp8.c $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(fp8_FLAGS) $< -o $@ $(LDLIBS)
lesson: all build/lesson/picture build/lesson/head build/lab/inject
	dev/lesson/lesson.sh all $(LESSON_OUT)
# The networks of dev/paper, in every precision: build/paper/cnn_fp8 and so on; and its tables.
PAPER = $(foreach name,cnn lstm,$(PRECISIONS:%=build/paper/$(name)_%))
build/paper/%: dev/paper/cnn.c dev/paper/lstm.c $(wildcard dev/paper/*.h) dev/check/arrays.h \
  train_gpt_fp8.c $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(call flags_of,$*) \
	  dev/paper/$(firstword $(subst _, ,$*)).c -o $@ $(LDLIBS)
build/paper/tables: dev/paper/tables.c dev/compare.c train_gpt_fp8.c $(FLAGS_FILE)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(fp8_FLAGS) $< -o $@ $(LDLIBS)
PAPER_OUT = log/paper
paper paper-full: all $(PAPER) build/paper/tables build/compare build/lab/ptq data/glyphs.d/train.bin
	dev/paper/runs.sh $(@:paper-%=%) '$(PAPER_OUT)'
compare: build/compare all
	build/compare --arms '$(ARMS)' --seeds $(SEEDS) --out '$(OUT)' -- $(RUN)
CURVES_RUN = -v 50
CURVES_DIR = log/curves
CURVES = dev/img/losses.svg
curves: build/compare all
	build/compare --arms fp16,bf16,fp8 --seeds 1 --out $(CURVES_DIR) -- $(CURVES_RUN)
	cp $(CURVES_DIR)/curves.svg $(CURVES)

help:
	@sed -n '/^#/!q; s/^# //p' $(firstword $(MAKEFILE_LIST))

# What scripts under dev/ compile with.
flags:
	@echo '$(CFLAGS) $(NUMERICS)'
cuda-flags:
	@echo '-O3 $(NVCC_NUMERICS)'
nvcc-flags:
	@echo '$(NVCC_FLAGS)'

# The CUDA backend. Contraction is off and denormals are flushed, as in the C file: same FP8 bytes.
NVCC ?= nvcc
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(filter %/bin/nvcc,$(shell command -v $(NVCC) 2>/dev/null)))
THIS_GPU = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
  sed -n '1s/^\([0-9]*\)\.\([0-9]\)$$/\1\2/p')
GPU_ARCH ?= sm_$(or $(THIS_GPU),90)
NVCC_NUMERICS = -std=c++17 -fmad=false -ftz=true -prec-div=true -prec-sqrt=true \
  -Xcompiler -Wall,-Wextra,-Werror,-ffp-contract=off
ALL_ARCHS = 80 89 90 100 120
EVERY_ARCH = $(foreach a,$(ALL_ARCHS),-gencode arch=compute_$a,code=sm_$a) --threads 0
ARCH_FLAGS = $(if $(filter all,$(GPU_ARCH)),$(EVERY_ARCH),-arch=$(GPU_ARCH))
NVCC_FLAGS = -O3 $(ARCH_FLAGS) $(NVCC_NUMERICS) $(CUDNN_FLAGS) $(NCCL_FLAGS)
CUDA_LIBS = -lcublasLt $(if $(CUDA_HOME),-Xlinker -rpath=$(CUDA_HOME)/lib64)

# cuDNN's attention needs two headers: cudnn.h, and cudnn_frontend.h of the Python package
# nvidia-cudnn-frontend. They are looked for in the usual directories, then among Python's packages.
# The library itself is opened when a run begins. USE_CUDNN=0 does not look; USE_CUDNN=1 ends where
# a header is missing.
PYTHON ?= python3
PYTHON_PACKAGES = $(shell $(PYTHON) -c \
  'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)
CUDNN_PACKAGE = $(PYTHON_PACKAGES)/nvidia/cudnn
# $(call directory_of,HEADER,DIRECTORIES): the first of the directories that has the header
directory_of = $(patsubst %/$1,%,$(firstword $(wildcard $(addsuffix /$1,$2))))
USUAL_DIRS = $(CUDA_HOME)/include /usr/include /usr/local/include
CUDNN_DIR = $(call directory_of,cudnn.h,$(USUAL_DIRS) $(CUDNN_PACKAGE)/include)
FRONTEND_DIR = $(call directory_of,cudnn_frontend.h,$(USUAL_DIRS) $(PYTHON_PACKAGES)/include)
CUDNN_MISSING = $(strip $(if $(CUDNN_DIR),,cudnn.h) $(if $(FRONTEND_DIR),,cudnn_frontend.h))
CUDNN_INCLUDES = $(filter-out /usr/include,$(sort $(CUDNN_DIR) $(FRONTEND_DIR)))
CUDNN_HELP = pip install nvidia-cudnn-frontend, or CUDNN_FLAGS="-DHAS_CUDNN -isystem DIR .."
CUDNN_ERROR = $(error USE_CUDNN=1: not found: $(CUDNN_MISSING); $(CUDNN_HELP))
CUDNN_ABSENT = $(if $(USE_CUDNN),$(CUDNN_ERROR))
CUDNN_PRESENT = -DHAS_CUDNN $(addprefix -isystem ,$(CUDNN_INCLUDES))
ifeq ($(filter 0 no,$(USE_CUDNN)),)
CUDNN_FLAGS ?= $(if $(CUDNN_MISSING),$(CUDNN_ABSENT),$(CUDNN_PRESENT))
CUDNN_IN_PYTHON = $(findstring $(CUDNN_PACKAGE)/,$(CUDNN_FLAGS))
CUDA_LIBS += $(if $(CUDNN_IN_PYTHON),-Xlinker -rpath=$(CUDNN_PACKAGE)/lib)
else
override CUDNN_FLAGS :=
endif
# NCCL moves what several processes exchange: nccl.h and the library of the toolkit, the system, or
# Python's nvidia-nccl-cu13. MPI or, without it, the environment and a file make them one run.
ifdef NCCL
NCCL_PACKAGE = $(PYTHON_PACKAGES)/nvidia/nccl
NCCL_DIR := $(call directory_of,nccl.h,$(USUAL_DIRS) $(NCCL_PACKAGE)/include)
ifeq ($(NCCL_DIR),)
$(error NCCL=1: not found: nccl.h; pip install nvidia-nccl-cu13)
endif
NCCL_FLAGS = -DUSE_NCCL $(addprefix -isystem ,$(filter-out /usr/include,$(NCCL_DIR)))
NCCL_IN_PYTHON = $(findstring $(NCCL_PACKAGE)/,$(NCCL_DIR))
CUDA_LIBS += $(if $(NCCL_IN_PYTHON),-L$(NCCL_PACKAGE)/lib -l:libnccl.so.2 \
  -Xlinker -rpath=$(NCCL_PACKAGE)/lib,-lnccl)
ifdef MPI
NCCL_FLAGS += -DUSE_MPI $(patsubst -I%,-isystem %,$(filter -I%,$(shell mpicc --showme:compile)))
CUDA_LIBS += $(filter -L% -l%,$(shell mpicc --showme:link))
endif
endif
ifneq ($(filter cuda train_gpt_%cu,$(MAKECMDGOALS)),)
ifeq ($(filter sm_% all native,$(GPU_ARCH)),)
$(error GPU_ARCH: expected sm_90 and the like, native, or all; found '$(GPU_ARCH)')
endif
$(call keep,build/cuda-flags,$(NVCC) $(NVCC_FLAGS))
endif
ifneq ($(shell command -v $(NVCC) 2>/dev/null),)
cuda: $(PRECISIONS:%=train_gpt_%cu) data/tales.d/train.txt
else
cuda:
	@echo "make cuda: no $(NVCC) was found (it comes with NVIDIA's CUDA Toolkit);" \
	  "nothing is built"
endif
$(PRECISIONS:%=train_gpt_%cu): train_gpt_%cu: train_gpt_fp8.cu $(wildcard build/cuda-flags)
	$(NVCC) $(NVCC_FLAGS) $($*_FLAGS) -DCOMMIT='"$(COMMIT)"' $< -o $@ $(CUDA_LIBS)

test-cuda: test_program
	@mkdir -p build/cuda
	$(CXX) -std=c++17 -O2 -Wall -Wextra -Werror dev/cuda/on_cpu_test.cpp -o build/cuda/on_cpu_test
	build/cuda/on_cpu_test
	set -e; for p in $(PRECISIONS); do echo "== $$p"; dev/cuda/test.sh $$p; done
	@echo "== fp8, as on sm_80: conversions in software, emulated products"
	CUDA_ON_CPU_ARCH=8.0 build/cuda/test_cpu_fp8 numbers quantize fused products
	@echo "== the CUDA file's program"
	./test_program build/cuda/test_cpu_fp8 --as-cuda

bench: data/tales.d/train.txt
	dev/bench/run.sh

clean:
	rm -rf build test_program $(TRAINERS) $(TRAINERS:%=%cu) $(TESTS) data/tales data/tales.d \
	  data/glyphs data/glyphs.d

.PHONY: all help cuda cuda-flags nvcc-flags test-cuda test test-exhaustive ladder compare curves \
  paper paper-full lesson flags bench clean
