# make demo    trains on real digits, stock torch against rusttorch, and says what the swap is worth
# make test    every test, and a sample of the op tests at each lower instruction set (ONE_IN=1: all)
# make drop-in torch's own database of ops, each entry in stock and under use(): differences that nothing explains
# make bench   ops, optimizers and training loops against stock: bench/results.jsonl, the README's tables, docs/benchmarks.md
# make accuracy  errors in ulp over every float32 there is, ours and stock's: docs/accuracy.md; an hour on two cores
# make wheel   dist/*.whl, tagged manylinux, and a look that no AVX-512 instruction stands outside its kernels
# make asan    the op tests and a fuzz run under AddressSanitizer and UBSan; its build takes 10 minutes
# make tsan    threads that call, switch and allocate under ThreadSanitizer; its build takes 10 minutes
# make lint    formatting, lint, and a build with warnings as errors
# make cuda    compiles and strictly links the CUDA sources; needs nvcc, no GPU
# make gpu     builds, tests, sanitizes and times everything on a GPU, with the torch of PYTHON; downloads nothing
# make emulate runs the CUDA kernels on the CPU, in the families' tests; needs CUDA's headers, no GPU
#
# Each but gpu makes .venv if it is missing and builds what has changed. TORCH chooses the torch to build against.

TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(CURDIR)/.venv/ccache:$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/torch_ext
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_SLOPPINESS := pch_defines,time_macros
SOURCES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc_cuda/*' 'tests/emulation/*.h' 'tests/*.cpp')

# What runs kernels, without what is about the dispatcher.
FAMILIES := $(shell sed -n 's/^  X(\([a-z_]*\)).*/\1/p' csrc/families.h)
KERNEL_TESTS := $(FAMILIES:%=tests/test_%.py) -k "not (opcheck or compile or vmap or derivatives or swapped or complete)"

.PHONY: demo test drop-in bench accuracy wheel asan tsan lint cuda gpu emulate build clean

demo: build
	python examples/digits.py

# Several processes, whose threads wait for each other without spinning. One in so many of the op tests at each lower
# instruction set.
ONE_IN ?= 10
PYTEST := pytest -n auto --dist worksteal
test asan drop-in: export OMP_WAIT_POLICY := passive
test: build
	$(PYTEST) tests
	ATEN_CPU_CAPABILITY=avx2 $(PYTEST) --one-in $(ONE_IN) $(KERNEL_TESTS)
	ATEN_CPU_CAPABILITY=default $(PYTEST) --one-in $(ONE_IN) $(KERNEL_TESTS)

drop-in: build
	python tests/drop_in.py --out build/drop_in.json

# One core, all sizes; then 10k and 1M in other dtypes and layouts; more threads; and the page on scale.
MEASURE := python -m rusttorch.bench --out bench/results.jsonl
FEW := --pairs 11 --sizes 10000 1000000
SCALE := add mish sum mse_loss --pairs 9 --sizes 16 128 1024 8192 65536 524288 4194304 33554432 268435456
bench: export OPENBLAS_NUM_THREADS := 1
bench: build
	$(MEASURE) --contenders
	for dtype in bfloat16 float16 float64; do $(MEASURE) $(FEW) --dtype $$dtype || exit 1; done
	for layout in transposed strided; do $(MEASURE) $(FEW) --layout $$layout || exit 1; done
	$(MEASURE) $(FEW) --threads 2
	for threads in 1 2; do $(MEASURE) $(SCALE) --threads $$threads || exit 1; done
	taskset -c 1 python bench/optimizer.py --out bench/results.jsonl
	taskset -c 1 python bench/train.py --threads 1 --curves --out bench/results.jsonl
	python bench/train.py --threads 2 --out bench/results.jsonl
	taskset -c 1 python bench/matmul.py --dtypes float32 --rows 1 4 32 64 128 512 --contenders --out bench/results.jsonl
	taskset -c 1 python bench/matmul.py --dtypes bfloat16 float16 --out bench/results.jsonl
	taskset -c 1 python bench/models.py --out bench/results.jsonl
	python bench/report.py
	python tools/ops_page.py

accuracy: build
	python tools/accuracy.py

wheel: build
	rm -rf build/wheel dist
	pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	auditwheel repair -w dist --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*' build/wheel/*.whl
	python tools/instruction_sets.py

# What is refused for its size is refused by the allocator; Python itself leaks by design.
SANITIZED = PYTHONPATH=build/asan FUZZ_CALLS=100000 PYTHONMALLOC=malloc \
    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1
asan: ONE_IN = 1
asan: build
	SANITIZE=address,undefined python setup.py -q build_py --build-lib build/asan \
	    build_ext --build-lib build/asan --build-temp build/asan_objects
	$(SANITIZED) $(PYTEST) tests/test_fuzz.py
	$(SANITIZED) $(PYTEST) --one-in $(ONE_IN) $(KERNEL_TESTS)

# OpenMP's own barriers are not instrumented: one thread for each call. Its shadow memory needs addresses as they were
# before randomization.
tsan: build
	SANITIZE=thread python setup.py -q build_py --build-lib build/tsan \
	    build_ext --build-lib build/tsan --build-temp build/tsan_objects
	PYTHONPATH=build/tsan OMP_NUM_THREADS=1 LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
	    TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 \
	    setarch -R python -m pytest tests/test_swap.py tests/test_memory.py -k "threads and not sanitizer"

lint: build
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(SOURCES)
	WERROR=1 python setup.py -q build_ext --build-lib build/werror --build-temp build/werror

cuda: .venv/made
	python tools/cuda_check.py $(ARGS)

gpu:
	$(PYTHON) tools/gpu.py $(ARGS)

emulate: build
	python tools/emulate.py

build: .venv/made
	@python setup.py -q build_ext --inplace

# ccache under the compilers' names: a second build of the same source, in any clone, takes seconds.
.venv/made: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH) -r requirements-dev.txt
	mkdir -p .venv/ccache
	for name in gcc g++ cc c++; do ln -sf ../bin/ccache .venv/ccache/$$name; done
	touch $@

clean:
	rm -rf build out torch_ext/rusttorch/*.so torch_ext/rusttorch/_build.py
