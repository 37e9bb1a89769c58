"""Make the demo gallery's pictures and its database:  python demo/build.py OUT_DIR

Running it again changes nothing. It embeds with ResNet50 where its weights are there or
can be downloaded, and with `hog` elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.csv_files import read_csv
from datasette_image_similarity.encoders import load_encoder
from datasette_image_similarity.errors import EncoderError

sys.path.insert(0, str(Path(__file__).parent))
from gallery import make_gallery

TABLE = "gallery"


def choose_encoder() -> EncoderOptions:
    """ResNet50, or hog with the reason in one line."""
    try:
        load_encoder("resnet50")
    except EncoderError as error:
        reason = str(error).split(". ")[0].split("\n")[0]
        print(f"Using the hog encoder, which needs no download, because: {reason}")
        return EncoderOptions("hog")
    return EncoderOptions("resnet50")


def enable_search(collection: ImageCollection) -> None:
    """Full-text search over titles and kinds, as `?_search=` uses it."""
    conn = collection.connect()
    if conn.execute("select 1 from sqlite_master where name = 'gallery_fts'").fetchone():
        return
    conn.executescript(
        "create virtual table gallery_fts using fts5"
        '(title, kind, colour, artist, content="gallery");'
        "insert into gallery_fts (gallery_fts) values ('rebuild');"
    )


def main() -> None:
    out = Path(sys.argv[1])
    count = make_gallery(out / "pictures")
    database = out / "gallery.db"
    with ImageCollection(database, TABLE) as collection:
        encoder = None if database.exists() else choose_encoder()
        summary = collection.embed(
            read_csv(out / "pictures" / "gallery.csv"),
            path_column="file",
            root=out / "pictures",
            encoder=encoder,
        )
        enable_search(collection)
        print(f"{count} pictures in {database}, by {collection.status().encoder}:")
        print(f"{summary.embedded} embedded, {summary.unchanged} unchanged")


if __name__ == "__main__":
    main()
