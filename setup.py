"""Build the compiled passes where there is a C compiler; without them recording is only slower."""

from setuptools import Extension, setup

PASSES = Extension(
    "gradscope.summarise._passes",
    ["gradscope/summarise/passes.c", "gradscope/summarise/entries.c"],
    depends=["gradscope/summarise/entries.h"],
    extra_compile_args=[
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[PASSES])
