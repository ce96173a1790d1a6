"""Collect what PyInstaller does not find by itself: modules imported by name, and data files.

MLX's own files are collected here too. Its library imports Python modules, and reads kernels from
files that lie beside it.
"""

from importlib.metadata import distributions

from PyInstaller.utils.hooks import (
    collect_all,
    collect_data_files,
    collect_submodules,
    copy_metadata,
)

datas, binaries, hiddenimports = collect_all("mlx")
datas += collect_data_files("fastwhisper")
hiddenimports += collect_submodules("fastwhisper")
# By this fastwhisper knows at the start that there may be a GPU: see engine/blas.py.
for distribution in distributions():
    if distribution.name.startswith("mlx-cuda"):
        datas += copy_metadata(distribution.name)
