"""Kinds of odd archives around images: of layouts, and of what `docker save` writes."""

import json

from images import docker, kind, tar_of
from packing import PACKINGS, gz
from tape import Tape


@kind
def archive_of_a_layout(image, r):
    image.form = "oci-archive"


@kind
def compressed_archive_of_a_layout(image, r):
    image.form, image.wrap = "oci-archive", gz


@kind
def of_docker_save(image, r):
    docker(image)


@kind
def of_docker_save_with_compressed_layers(image, r):
    docker(image, PACKINGS[r.choice(["gzip", "gzip-members", "xz", "zstd", "zstd-skippable-first"])])


@kind
def of_docker_save_with_layers_of_bzip2(image, r):
    docker(image, PACKINGS["bzip2"])


@kind
def of_docker_save_compressed(image, r):
    docker(image, r.choice([gz, lambda data: data]))
    image.wrap = PACKINGS[r.choice(["gzip", "xz", "zstd"])]


@kind
def of_docker_save_from_a_pipe(image, r):
    docker(image, r.choice([gz, lambda data: data]))
    image.transport = r.choice(["-", "/dev/stdin", "fifo"])
    image.wrap = r.choice([gz, lambda data: data])


@kind
def layout_from_a_pipe(image, r):
    image.form = "oci-archive"
    image.transport = r.choice(["-", "/dev/stdin", "fifo"])


@kind
def of_docker_save_with_links(image, r):
    """As old versions of docker wrote layers that are the same."""
    docker(image)
    image.layers.append(image.layers[0])

    def linked(files):
        names = json.loads(files["manifest.json"])[0]["Layers"]
        tape = Tape()
        for name, data in files.items():
            if name != "manifest.json":
                tape.add(name.encode(), data)
        tape.add(b"other/layer.tar", kind=b"2", link=b"../" + names[0].encode())
        manifest = json.loads(files["manifest.json"])
        manifest[0]["Layers"][2] = "other/layer.tar"
        return tape.add(b"manifest.json", json.dumps(manifest).encode()).end()

    image.archive = linked


def by_tar(files):
    """As `tar -c .` writes a directory."""
    tape = Tape().dir(b"./")
    for name in sorted(files):
        parts = name.split("/")[:-1]
        for n in range(len(parts)):
            tape.dir(b"./" + "/".join(parts[:n + 1]).encode() + b"/")
        tape.add(b"./" + name.encode(), files[name])
    return tape.end()


@kind
def layout_archived_by_tar(image, r):
    image.form, image.archive = "oci-archive", by_tar


@kind
def of_docker_save_archived_by_tar(image, r):
    docker(image)
    image.archive = by_tar


@kind
def sparse_files_in_the_archive(image, r):
    """As `tar -S` writes files with holes: here the hole is the zeros at the end of a layer."""
    image.layers[0].pack = image.layers[1].pack = lambda data: data
    for layer in image.layers:
        layer.suffix, layer.tape.ending = "", bytes(10240)

    def sparse(files):
        tape = Tape()
        for name, data in files.items():
            kept = len(data.rstrip(b"\0")) // 512 * 512 + 512
            if kept + 1024 > len(data):
                tape.add(name.encode(), data)
                continue
            numbers = b"2\n0\n%d\n%d\n0\n" % (kept, len(data))
            tape.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name.encode()),
                     (b"GNU.sparse.realsize", b"%d" % len(data)))
            tape.add(b"GNUSparseFile.1/x", numbers.ljust(512, b"\0") + data[:kept])
        return tape.end()

    image.form, image.archive = "oci-archive", sparse


@kind
def one_of_several_of_docker_save(image, r):
    docker(image)
    image.name = r.choice([":h.x/app:v", ":h.x/more:w"])

    def several(files):
        manifest = json.loads(files["manifest.json"])
        manifest[0]["RepoTags"].append("h.x/more:w")
        other = {"Config": "other.json", "RepoTags": ["h.x/other:v"], "Layers": manifest[0]["Layers"][:1]}
        config = json.loads(files["config.json"])
        config["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"][:1]
        return tar_of({**files, "other.json": json.dumps(config).encode(),
                       "manifest.json": json.dumps([other, *manifest]).encode()})

    image.archive = several


@kind
def of_docker_save_with_nulls(image, r):
    docker(image)

    def nulls(files):
        manifest = json.loads(files["manifest.json"])
        manifest[0].update(RepoTags=None, Parent=None, LayerSources=None)
        return tar_of({**files, "manifest.json": json.dumps(manifest).encode()})

    image.archive = nulls


@kind
def odd_archive_of_docker_save(image, r):
    """Global headers, long names and sizes where none belong, in the archive around the layers."""
    docker(image)

    def odd(files):
        tape = Tape().pax((b"comment", b"x" * 600), kind=b"g").dir(b"empty", size=512)
        for name, data in files.items():
            tape.pax((b"path", name.encode()), (b"mtime", b"1.5")).add(b"short", data)
        return tape.end()

    image.archive = odd
