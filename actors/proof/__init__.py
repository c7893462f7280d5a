"""The proof: what happened, read from the files by a second, independent reader.

`parse` reads bytes, `verify` judges files alone, `checks` judges files with histories, `story`
tells one message's path. May import `ids`, `limits` and `errors`; never `storage`, `codec`,
`core`, `driver` or `records`: a mistake in those must not hide itself here.
"""
