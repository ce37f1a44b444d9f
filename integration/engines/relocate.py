"""Copies a jar with its packages moved below another one, in names and references: what the makers of "shaded" jars do.

The package with Iceberg's jar for Spark has left out its copy of Jackson, and what is in that jar asks for it by the copy's name. Spark has
the same library under its own name.
"""

import struct
import zipfile

# Sizes of the entries of a class file's constants, by their tag (JVM specification, 4.4); texts (1) say their length.
SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}


def moved_class(code, old, new):
    out, at = bytearray(code[:10]), 10
    number, count = 1, struct.unpack_from(">H", code, 8)[0]
    while number < count:
        tag = code[at]
        if tag == 1:
            length = struct.unpack_from(">H", code, at + 1)[0]
            text = code[at + 3 : at + 3 + length]
            for a, b in ((old, new), (old.replace(b"/", b"."), new.replace(b"/", b"."))):
                text = text.replace(a, b)
            out += b"\x01" + struct.pack(">H", len(text)) + text
            at += 3 + length
        else:
            out += code[at : at + 1 + SIZES[tag]]
            at += 1 + SIZES[tag]
        number += 2 if tag in (5, 6) else 1
    return bytes(out + code[at:])


def relocate(jars, target, old, new):
    """From `old` to `new`, as paths: `com/example/`."""
    with zipfile.ZipFile(target, "w") as out:
        for jar in jars:
            with zipfile.ZipFile(jar) as source:
                for name in source.namelist():
                    if name.startswith(old) and name.endswith(".class"):
                        out.writestr(new + name[len(old) :], moved_class(source.read(name), old.encode(), new.encode()))
