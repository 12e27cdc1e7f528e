"""Code streams of a few bytes whose pixels are known: what a decoder must give before it is trusted with a scan.

Each shows one of two patterns of 9 rows and 7 columns (`pattern`, `smooth`). They were made with other programs than
those that decode them here: dcmtk (JPEG Lossless), OpenJPEG (JPEG 2000), CharLS (JPEG-LS), libjpeg-turbo (lossy JPEG)
and pydicom (RLE); the last two of JPEG Lossless by hand after ITU T.81 H.2.1: their differences leave the range of
samples and must wrap round, as those of some scanners do (pylibjpeg-libjpeg issue 90 is about a decoder that clamps).
"""

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 9, 7


@dataclass(frozen=True)
class KnownAnswer:
    """A code stream of one frame.

    Attributes
    ----------
    bits : stored per sample; 8 or fewer are in bytes, more in 16-bit words.
    signed : two's complement.
    lossy : it shows `smooth` nearly, else `pattern` exactly.
    text : the stream in base64.
    """

    bits: int
    signed: bool
    lossy: bool
    text: str

    @property
    def stream(self) -> bytes:
        """The code stream."""
        return base64.b64decode(self.text)

    @property
    def pixels(self) -> NDArray[np.int64]:
        """(ROWS, COLUMNS) what it shows."""
        return smooth(self.bits) if self.lossy else pattern(self.bits, self.signed)

    @property
    def tolerance(self) -> int:
        """Largest difference of a right answer."""
        return max(2, 1 << (self.bits - 8)) if self.lossy else 0


def pattern(bits: int, signed: bool) -> NDArray[np.int64]:
    """Every bit is used, and the lowest and highest value stand beside others."""
    low, values = -(1 << (bits - 1)) if signed else 0, 1 << bits
    r, c = np.mgrid[:ROWS, :COLUMNS]
    mixed = (37 * r * r + 101 * c + 13 * r * c) * max(1, values // 4096) if bits > 8 else 37 * r + 11 * c
    found: NDArray[np.int64] = low + mixed % values
    found[0, 0] = found[2, 2] = low + values - 1
    found[1, 2] = found[-1, -1] = low
    return found


def smooth(bits: int) -> NDArray[np.int64]:
    """Something that lossy compression keeps."""
    values = 1 << bits
    r, c = np.mgrid[:ROWS, :COLUMNS]
    found: NDArray[np.int64] = values // 16 + values // 32 * r + values // 40 * c
    return found


KNOWN_ANSWERS: dict[str, tuple[KnownAnswer, ...]] = {
    "1.2.840.10008.1.2.5": (  # RLE Lossless
        KnownAnswer(
            8,
            False,
            False,
            "AQAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAb/CxYhLDdCBiUw"
            "AEZRXGcGSlX/a3aBjAZveoWQm6axBpSfqrXAy9YGucTP2uXw+wbe6fT/ChUgBgMOGSQvOkUGKDM+SVRfAA==",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "AgAAAEAAAACMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP/wD+AQAC/gD/"
            "Af8CAgABD/8C/wP/Af8CAAP/BP8CAAP/BP8FAAP/BAAF/wYAB/8FAQYH/wgACf8HAQgJ/woACwAJ/woDCwwNAAAG/2XKL5T5XgYl"
            "lwB77V/RBpQT/xGQD44GTdll8X0JlQZQ6YIbtE3mBp1D6Y8124EGNOeaTQCzZgYV1ZVVFdWVBkAN2qd0QQA=",
        ),
        KnownAnswer(
            12,
            True,
            False,
            "AgAAAEAAAACMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAH//j++QD6/vj/"
            "+f/6Avj5B//6//v/+f/6APv//P/6APv//P/9APv//AD9//4A///9Af7//wAAAf//AQAB/wIAAwAB/wIDAwQF+AAG/2XKL5T5XgYl"
            "lwB77V/RBpQT/xGQD44GTdll8X0JlQZQ6YIbtE3mBp1D6Y8124EGNOeaTQCzZgYV1ZVVFdWVBkAN2qd0QQA=",
        ),
        KnownAnswer(
            16,
            False,
            False,
            "AgAAAEAAAACIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAb/BgwSGR8lBgIJ"
            "ABceJS0GCRH/ISkwOAYUHSYvN0BJBiUuOEFLVF4GOUROWGNteAZTXml0gIuWBnF9iZWhrbkGlKCtusfUAAb/UKDwQJDgBlBwALDQ"
            "8BAGQDD/EADw4AbQkFAQ0JBQBgCQILBA0GAG0DCQ8FCwEAZAcKDQADBg+lAGANCgcEAQAA==",
        ),
        KnownAnswer(
            16,
            True,
            False,
            "AgAAAEAAAACIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAZ/hoySmZ+lBoKJ"
            "gJeepa0GiZF/oamwuAaUnaavt8DJBqWuuMHL1N4GucTO2OPt+AbT3un0AAsWBvH9CRUhLTkGFCAtOkdUgAb/UKDwQJDgBlBwALDQ"
            "8BAGQDD/EADw4AbQkFAQ0JBQBgCQILBA0GAG0DCQ8FCwEAZAcKDQADBg+lAGANCgcEAQAA==",
        ),
    ),
    "1.2.840.10008.1.2.4.50": (  # JPEG Baseline
        KnownAnswer(
            8,
            False,
            True,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQE"
            "BAQEAgMFBQQEBQQEBAT/wAALCAAJAAcBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
            "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
            "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
            "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APwB+DX7Nv8Ao8X+gf8ALE/8sv8AZr9IPg1/x7xf9cT/AOg1/9k=",
        ),
    ),
    "1.2.840.10008.1.2.4.51": (  # JPEG Extended
        KnownAnswer(
            8,
            False,
            True,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQE"
            "BAQEAgMFBQQEBQQEBAT/wAALCAAJAAcBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
            "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
            "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
            "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APwB+DX7Nv8Ao8X+gf8ALE/8sv8AZr9IPg1/x7xf9cT/AOg1/9k=",
        ),
        KnownAnswer(
            12,
            False,
            True,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQE"
            "BAQEAgMFBQQEBQQEBAT/wQALDAAJAAcBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAADf/EACAQAAAFAwUAAAAAAAAAAAAAAAADBAcL"
            "DChHOGNld7X/2gAIAQEAAD8AAwYUqm4reW0sLwyrxtwZ+yEgCFK08tp0yr8M8f/Z",
        ),
    ),
    "1.2.840.10008.1.2.4.57": (  # JPEG Lossless
        KnownAnswer(
            8,
            False,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAJAAcBAREA/8QAGAABAAMBAAAAAAAAAAAAAAAABQYHCAT/2gAIAQEABgAAv/BfX19f"
            "X14l0lF5gmmnJU921KmmnJU853EmmnJU000005KmmmmmnJU008JUlSWJKSpKktJppyVNNNNOqP/Z",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGwABAAMBAAMAAAAAAAAAAAAABAcJDAgKDQ//2gAIAQEABAAA+H/2"
            "BlmWZZlmWZcBL7AM4DsWa1s3t3weCWa1vXLcM/uemtbYG1rWtbaa1rWtbcu1rWtbfC1rWtb5FbWta3D/AH///9k=",
        ),
        KnownAnswer(
            12,
            True,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGgAAAwEBAQEAAAAAAAAAAAAABwgJDwwGCv/aAAgBAQAGAADB/wC4"
            "GUymUymUy8BLhA8jjY+z90QDeRe/B3iXLBfMrcmriAsHrD6wjFUDY9lWcaJqWvqa2jdOC47nOpZd2XfeZ7MA8sA+Lwv9QTAQrARC"
            "jFHvorwEiwEophTanvGaf//Z",
        ),
        KnownAnswer(
            16,
            False,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGQAAAwEBAQAAAAAAAAAAAAAACwwNCg8O/9oACAEBAAYAAO//AOZR"
            "MoGUDKBlAyhpR4D7o57Yhsw3MEADeBEjA9wlgLAF6DKDcgaY9AQ962D6DBwxQUDBjoZUGbhogaiGvCpoNnDdA4EOODmw6gWXB2Id"
            "8Hlh7AfKH5C8IP7FBAoVFEQovFHg9FYUiilIUvimwU8j2ah//9k=",
        ),
        KnownAnswer(
            16,
            True,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGwAAAgMBAQEAAAAAAAAAAAAACwwKDQ8OAQn/2gAIAQEABgAA8Mom"
            "UDKBlAygZQko/fhHPbEJmE5ggAbwIkQHmWEsAXoMoNyBpjoCEWufQYOGKCwMGOhlQZuGiBqIa8LTQbOG6BwIccHNh1AuXB2Id8Hl"
            "h7Aw8nw+PvhB/YsEDEKfEQ+xeLHg6KwxInxKPsvizYLPI7NQ/9k=",
        ),
        KnownAnswer(
            8,
            False,
            False,
            "/9j/xAAkAAAAAAARAAAAAAAAAAAAAAAAAQIDBAUGBwgJCgsMDQ4PEP/DAAsIAAkABwEBEQD/2gAIAQEAAQAAQ/IC0BSApAUgKQFI"
            "JUBRjzxkBSApAUgkQFIqkNaApAUgKQSICkBSApAUgKQFIJEBSApAUgKQFICkEiApAUgKQFICkBSCRAUgKQFICkBSApBIgKQFICkB"
            "SApAUgkQFICkBSApAUdB/9k=",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "/9j/xAAkAAAAAAARAAAAAAAAAAAAAAAAAQIDBAUGBwgJCgsMDQ4PEP/DAAsMAAkABwEBEQD/2gAIAQEAAQAAY/8AMBlYDIwGRgMj"
            "AZGAyMAlPyQ0MF6PyPyPyYDcwH5ndjCEWA/MB+YD8wLhEYiMRGIjERiIxggTAmGBMMCYYEwwJhgTDBTEUyKZFMimRTIpmDLMCyYF"
            "kwLJgWTAsmBZMHgRgIwEYCMBGAjAYRUwMxgZjAzGBmMDMYV9/9k=",
        ),
    ),
    "1.2.840.10008.1.2.4.70": (  # JPEG Lossless, first-order prediction
        KnownAnswer(
            8,
            False,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAJAAcBAREA/8QAFwABAQEBAAAAAAAAAAAAAAAABAYIB//aAAgBAQABAADv+C1rWteJ"
            "Vx/RlrXSr1Vmta10q1rWtdKta1rXSrWta10q1rwUteJFrWta6Va1rXyD///Z",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGQABAQEBAQEAAAAAAAAAAAAACAcJDAoP/9oACAEBAAEAAPh/9wMt"
            "lstlstl4CW5GjXu5XK5W+/8Ad2cQjf7/AH9coxGIxGIxGaBplMplMplM6mqZTKZTKZTbLrNZrNZrNZ7wsBgMBgMBgeitms1ms1m8"
            "V9//2Q==",
        ),
        KnownAnswer(
            12,
            True,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGQABAQEBAQEAAAAAAAAAAAAACAcJDAoP/9oACAEBAAEAAPg/9wMt"
            "lstlstl4CW5GjXu5XK5W+/8Ad2cQjf7/AH9coxGIxGIxGaBplMplMplM6mqZTKZTKZTbLrNZrNZrNZ7wsBgMBgMBgeitms1ms1m8"
            "V9//2Q==",
        ),
        KnownAnswer(
            16,
            False,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGQABAQEBAQEAAAAAAAAAAAAADAsNDgoP/9oACAEBAAEAAPv/AP2U"
            "bKFlCyhZQsoelG5AaP17C5BcguQW8L+GdndCI38L+F/BcgjARgIwEYCMBGBoGCZBMgmQTIJkEyGpoKYFMCmBTApgUwbLgswWYLMF"
            "mCzBZhvCDABgAwAYAMAGAHRWDNBmgzQZoM0Or8P//9k=",
        ),
        KnownAnswer(
            16,
            True,
            False,
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAJAAcBAREA/8QAGQABAQEBAQEAAAAAAAAAAAAADAsNDgEK/9oACAEBAAEAAPLKNlCy"
            "hZQsoWUPpRuQGj9ewuQXILkFvC/hnZ3QiN/C/hfwXIIwEYCMBGAjARgaBgmQTIJkEyCZBMhqaCmBTApgUwKYFMGy4LMFmCzBZgsw"
            "WYbwgwAYAMAGADABgB0VgzQZoM0GaDNDq/D/2Q==",
        ),
        KnownAnswer(
            8,
            False,
            False,
            "/9j/xAAkAAAAAAARAAAAAAAAAAAAAAAAAQIDBAUGBwgJCgsMDQ4PEP/DAAsIAAkABwEBEQD/2gAIAQEAAQAAQ/IC0BSApAUgKQFI"
            "JUBRjzxkBSApAUgkQFIqkNaApAUgKQSICkBSApAUgKQFIJEBSApAUgKQFICkEiApAUgKQFICkBSCRAUgKQFICkBSApBIgKQFICkB"
            "SApAUgkQFICkBSApAUdB/9k=",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "/9j/xAAkAAAAAAARAAAAAAAAAAAAAAAAAQIDBAUGBwgJCgsMDQ4PEP/DAAsMAAkABwEBEQD/2gAIAQEAAQAAY/8AMBlYDIwGRgMj"
            "AZGAyMAlPyQ0MF6PyPyPyYDcwH5ndjCEWA/MB+YD8wLhEYiMRGIjERiIxggTAmGBMMCYYEwwJhgTDBTEUyKZFMimRTIpmDLMCyYF"
            "kwLJgWTAsmBZMHgRgIwEYCMBGAjAYRUwMxgZjAzGBmMDMYV9/9k=",
        ),
    ),
    "1.2.840.10008.1.2.4.80": (  # JPEG-LS Lossless
        KnownAnswer(
            8,
            False,
            False,
            "/9j/9wALCAAJAAcBAREA/9oACAEBAAAAAEBwUtH/IAAHAAAwAAAK8AAAC68bAxQCgAAcAAAHX0yMSAYBoTIeSRuaxjCCJa1rU8hU"
            "zDoYgQwwkrhFVVVAAAA5AP/ZAA==",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "/9j/9wALDAAJAAcBAREA/9oACAEBAAAAAEASxJY7HYrDSxkApgGw5MoZG4O48gABkfT4fh1BYAAASxeEcRhKD4SJIA5FgVwcjDKM"
            "oihKAnxlMsVZVFSVBTjid8syyLEsCvL0Sguy6LkuC3AuwP/ZAA==",
        ),
        KnownAnswer(
            12,
            True,
            False,
            "/9j/9wALDAAJAAcBAREA/9oACAEBAAAAAAAAAAAf/BLY7FYbBX6YyAVQDYcmUMgvDuPIbn0+H4dQVwAEAKxHEYSg+EiSAORYFcHI"
            "wyjKIoSgJ8ZQFUqyqKkqFq0N4tCzWQAA1LIfgU6uUQvi9LwC8P/Z",
        ),
        KnownAnswer(
            16,
            False,
            False,
            "/9j/9wALEAAJAAcBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAEABKFk6ybZMsl2SqUIyEBT8A2BsiZgDIDeB8CPAgFEX9z+0"
            "/eXGEXYAZQuASLoi5EvhBQTDkwxMKTCEwYsaMwilEpQKTyk4pNGXAlcLGyxosZLGCxccrDfYvlL5C+MviL4S/oFSBleZXGVplYZV"
            "gX0g/9kA",
        ),
        KnownAnswer(
            16,
            True,
            False,
            "/9j/9wALEAAJAAcBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAAAAAAAAAf9+CULJ1k2yZZLslUomPgKhgGwFjzLwZAbtDv48"
            "CGwn7D9Z+8eKEvoF8hLkS4EtxL4EJhYUmEJgyYImBFjRmAUnlJxSaUmFJYy4ErRYyWMFi5YsjPWgG+pfIXxoz4BVAviH+wVIozoY"
            "omWBleZXAX1A/9kA",
        ),
    ),
    "1.2.840.10008.1.2.4.81": (  # JPEG-LS near-lossless
        KnownAnswer(
            12,
            False,
            False,
            "/9j/9wALDAAJAAcBAREA/9oACAEBAAAAAEASxJY7HYrDSxkApgGw5MoZG4O48gABkfT4fh1BYAAASxeEcRhKD4SJIA5FgVwcjDKM"
            "oihKAnxlMsVZVFSVBTjid8syyLEsCvL0Sguy6LkuC3AuwP/ZAA==",
        ),
        KnownAnswer(
            12,
            False,
            True,
            "/9j/6AAgU1BJRkYAAgAAAQAAAAkAAAAHChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAkABwEBEQD/+AANAf//ABgATQEiAED/"
            "2gAIAQEAAgAAWWUyenp6fPNKioqM2iUcM2bNkyVG7JkRIkVQsRIESD6oVIPvvvNCjzzzrzMk66644zIuONttswD/2Q==",
        ),
    ),
    "1.2.840.10008.1.2.4.90": (  # JPEG 2000 Lossless
        KnownAnswer(
            8,
            False,
            False,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABBwEB/1IADAAAAAEAAAQEAAH/XAAEQED/ZAAlAAFDcmVh"
            "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABSAAH/k9+CCBshW8q7b9IH6PgU4lSO30ys6V6tjlcAW5no1+N7"
            "Kyif7+clbLJFxcSoN09ID6aezVMjEaA5kA3qMDHs+MJMmqpR/9k=",
        ),
        KnownAnswer(
            12,
            False,
            False,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVh"
            "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABtAAH/k9/hcBshW35zoqQZONIl1xeUeV/JYGD/M9Mi1bizgGl9"
            "E67l9cOd9iDa9uUUquOKMtVQuG9yh6qUftvKemgUjsjbyd3xzWVI+azPJbfz9z9KifZRsbf1QRrDMb7YQGSB/9k=",
        ),
        KnownAnswer(
            12,
            True,
            False,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABiwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVh"
            "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABtAAH/k9/hcBshW35zoqQZONIl1xeUeV/JYGD/M9Mi1bizgGl9"
            "E67l9cOd9iDa9uUUquOKMtVQuG9yh6qUftvKemgUjsjbyd3xzWVI+azPJbfz9z9KifZRsbf1QRrDMb7YQGSB/9k=",
        ),
        KnownAnswer(
            16,
            False,
            False,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVh"
            "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAB2AAH/k9/4kyAbIVt+c6KkGTjSJdcXlHlfyWBg/zPTItW4s4Bp"
            "fROu5fXDnfYg2vblFKrjijLVULhvcoeqlH7bynpoFI7I28nd8c1lSPmszyW38/c/Son2UbG39UEawzG+2EBkgncAl2XTX/16/9k=",
        ),
        KnownAnswer(
            16,
            True,
            False,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABjwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVh"
            "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAB2AAH/k9/4kyAbIVt+c6KkGTjSJdcXlHlfyWBg/zPTItW4s4Bp"
            "fROu5fXDnfYg2vblFKrjijLVULhvcoeqlH7bynpoFI7I28nd8c1lSPmszyW38/c/Son2UbG39UEawzG+2EBkgncAl2XTX/16/9k=",
        ),
    ),
    "1.2.840.10008.1.2.4.91": (  # JPEG 2000
        KnownAnswer(
            12,
            True,
            False,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABiwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVh"
            "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABtAAH/k9/hcBshW35zoqQZONIl1xeUeV/JYGD/M9Mi1bizgGl9"
            "E67l9cOd9iDa9uUUquOKMtVQuG9yh6qUftvKemgUjsjbyd3xzWVI+azPJbfz9z9KifZRsbf1QRrDMb7YQGSB/9k=",
        ),
        KnownAnswer(
            8,
            False,
            True,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABBwEB/1IADQECAAEAAAQEAACI/1wABUJAAP9kACUAAUNy"
            "ZWF0ZWQgYnkgT3BlbkpQRUcgdmVyc2lvbiAyLjUuNP+QAAoAAAAAADYAAf+Tz5koEVBPj2ndAGyxp96BswwiXfXihGXgBps2qpWU"
            "t7Kate1hn2vOI//Z",
        ),
        KnownAnswer(
            12,
            False,
            True,
            "/0//UQApAAAAAAAHAAAACQAAAAAAAAAAAAAABwAAAAkAAAAAAAAAAAABCwEB/1IADQECAAEAAAQEAACI/1wABUJgAP9kACUAAUNy"
            "ZWF0ZWQgYnkgT3BlbkpQRUcgdmVyc2lvbiAyLjUuNP+QAAoAAAAAAEUAAf+Tz7DQEVBK1NHzewmSCL3oHKpRsFWUYpXzDUOo6aqr"
            "RychLPPmUtzCUSgicPqQu/9GcZAHA0Xgl//Z",
        ),
    ),
}
