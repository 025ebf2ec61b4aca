"""NVIDIA's run-time compiler through its C interface: no GPU, no driver, and two versions side by side."""

from __future__ import annotations

import ctypes
import functools
import sysconfig
from pathlib import Path

# Where the packages nvidia-cuda-nvrtc-cu12 and nvidia-cuda-nvrtc put the library, by major version.
LIBRARIES = {12: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", 13: "nvidia/cu13/lib/libnvrtc.so.13"}


def is_installed():
    return all(_path(version).exists() for version in LIBRARIES)


def _path(version):
    return Path(sysconfig.get_path("purelib")) / LIBRARIES[version]


@functools.cache
def _library(version):
    return ctypes.CDLL(str(_path(version)))


def compile_for(version, source, architecture, options):
    """(PTX, log) of a text compiled for an architecture such as sm_90; the log tells what ptxas -v says."""
    nvrtc, program = _library(version), ctypes.c_void_p()
    options = [f"-arch={architecture}", "--ptxas-options=-v", *options]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None) == 0
    status = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    assert status == 0, log
    ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, log


def _text(size_of, get, program):
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert get(program, buffer) == 0
    return buffer.value.decode()
