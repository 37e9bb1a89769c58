import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PACKAGE = (HERE / "datasette_image_similarity" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+?)"', PACKAGE)[1]

setup(
    name="datasette-image-similarity",
    version=VERSION,
    description="Find similar pictures in Datasette, by embeddings in SQLite",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Framework :: Datasette",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=[
        "datasette_image_similarity",
        "datasette_image_similarity.cli",
        "datasette_image_similarity.encoders",
        "datasette_image_similarity.explore",
        "datasette_image_similarity.fetch",
        "datasette_image_similarity.learning",
        "datasette_image_similarity.stores",
        "datasette_image_similarity.web",
    ],
    package_data={"datasette_image_similarity": ["templates/*", "static/*", "py.typed"]},
    entry_points={"datasette": ["image_similarity = datasette_image_similarity"]},
    python_requires=">=3.10",
    install_requires=[
        # Lower bounds are where known vulnerabilities end, or what the code needs.
        "datasette>=0.65.4",  # permissions and caches
        "sqlite-vec>=0.1.9",
        "torch>=2.10",  # loading of weights
        "torchvision>=0.25",
        "numpy>=2",
        "click",
        "pillow>=12.3",
        "pathspec>=1.0",  # the rules of .gitignore, for --exclude
        "python-multipart>=0.0.30",  # forms that take for ever
        # For downloads: whom to believe, and names in other alphabets than the Latin.
        "certifi>=2024.7.4",
        "idna>=3.7",
    ],
    extras_require={
        "explore": ["scikit-learn>=1.6", "openTSNE>=1.0.4"],
        "umap": ["umap-learn>=0.5.9"],
        "heic": ["pillow-heif>=1.3"],
        "jxl": ["pillow-jxl-plugin>=1.3.8"],
        "raw": ["rawpy>=0.27"],  # LibRaw 0.22.1: without the overflows of 2026
        "int8": ["openvino>=2026.1", "nncf>=3.0"],
        "safetensors": ["safetensors"],
        "timm": ["timm>=1.0.20", "safetensors"],
        "open_clip": ["open_clip_torch>=3.2", "safetensors"],
        "milvus": [
            "pymilvus>=2.6",
            # Milvus in a file, for one computer; it has no wheel for Windows.
            'milvus-lite>=3.0; sys_platform != "win32"',
        ],
        "ray": ["ray[data]>=2.60"],
        "cloud": ["fsspec>=2025.3", "s3fs>=2025.3", "gcsfs>=2025.3"],
        "parquet": ["pyarrow>=18"],
        "test": [
            "pytest",
            "pytest-asyncio",
            "pytest-xdist>=3.7",
            "hypothesis>=6.100",
            "psutil",
            "httpx",
            "playwright",
            "ruff",
            "build",
            "setuptools>=78.1.1",
            "sqlite-utils",
            "safetensors",
            "timm>=1.0.20",
            "open_clip_torch>=3.2",
            "pillow-heif>=1.3",
            "pillow-jxl-plugin>=1.3.8",
            "rawpy>=0.27",
            "scikit-learn>=1.6",
            "openTSNE>=1.0.4",
            "pymilvus>=2.6",
            'milvus-lite>=3.0; sys_platform != "win32"',
            # A whole server in a wheel, for the tests and to try things with.
            'milvus==2.3.5; sys_platform == "linux" and platform_machine == "x86_64"',
            "ray[data]>=2.60",
            "fsspec>=2025.3",
            "s3fs>=2025.3",
            "gcsfs>=2025.3",
            "moto[server,s3]>=5",
            "pyarrow>=18",
        ],
    },
)
