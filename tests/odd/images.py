"""Kinds of odd images. Each changes one that is plain; what it says of a layer, a document or a file of the layout goes out as
it stands."""

import hashlib
import json
import os

from packing import PACKINGS, SKIPPABLE, gz, halves, zstd
from tape import BLOCK, Tape

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
REF = "org.opencontainers.image.ref.name"
KINDS = {}


def kind(function):
    KINDS[function.__name__.replace("_", "-")] = function
    return function


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layer:
    """An archive, and how it goes out. `blob` is made of it unless a kind has set it."""

    def __init__(self, tape, pack=gz, suffix="+gzip"):
        self.tape, self.pack, self.suffix = tape, pack, suffix
        self.plain = self.blob = None
        self.extra = {}

    def finish(self):
        if self.plain is None:
            self.plain = self.tape.end()
        if self.blob is None:
            self.blob = self.pack(self.plain)
        return self

    def descriptor(self):
        kind = {"mediaType": f"{OCI}layer.v1.tar{self.suffix}"} if self.suffix is not None else {}
        return {**kind, "digest": digest(self.blob), "size": len(self.blob), **self.extra}


class Image:
    """A plain image of two layers, of which no other image has one. `tamed` takes away what umoci cannot read."""

    def __init__(self, mark, random):
        self.random = random
        self.layers = [self.layer(mark, n) for n in range(2)]
        self.config = {
            "architecture": "amd64", "os": "linux", "created": "2001-02-03T04:05:06Z",
            "config": {"Env": ["PATH=/bin", f"MARK={mark}"], "Cmd": ["/bin/sh"], "WorkingDir": "/"},
            "history": [{"created_by": "one"}, {"created_by": "two"}],
        }
        self.manifest = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json"}
        self.entry = {"mediaType": OCI + "manifest.v1+json"}
        self.config_type = OCI + "config.v1+json"
        self.index = lambda entry: [entry]
        self.form, self.tag, self.wrap = "oci", "v", lambda data: data
        self.transport = "file"
        self.blobs = {}
        self.edit_config = self.edit_manifest = lambda document: None
        self.archive = self.tamed = self.without = self.name = None

    @staticmethod
    def layer(mark, number):
        tape = Tape().add(b"mark-%d" % number, mark.encode())
        return Layer(tape.dir(b"both", mode=0o750 + number).add(b"both/%d" % number, b"x"))

    def put(self, document):
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.blobs[digest(data)] = data
        return {"digest": digest(data), "size": len(data)}

    def finish(self):
        """The blobs, and the index."""
        for layer in self.layers:
            self.put(layer.finish().blob)
        self.config.setdefault("rootfs", {"type": "layers", "diff_ids": [digest(l.plain) for l in self.layers]})
        self.edit_config(self.config)
        self.config_data = json.dumps(self.config).encode()
        config = {"mediaType": self.config_type, **self.put(self.config_data)}
        manifest = {**self.manifest, "config": config, "layers": [l.descriptor() for l in self.layers]}
        self.edit_manifest(manifest)
        entry = {**self.entry, **self.put(manifest)}
        if self.tag:
            entry["annotations"] = {REF: self.tag}
        return {"schemaVersion": 2, "manifests": self.index(entry)}

    def layout(self):
        index = self.finish()
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
        files |= {f"blobs/{name.replace(':', '/')}": data for name, data in self.blobs.items()}
        files.pop(self.without, None)
        return files

    def docker(self):
        self.finish()
        names = [f"{digest(layer.blob).removeprefix('sha256:')}/layer.tar" for layer in self.layers]
        files = {"config.json": self.config_data} | {n: layer.blob for n, layer in zip(names, self.layers)}
        files["manifest.json"] = json.dumps([{"Config": "config.json", "RepoTags": ["h.x/app:v"], "Layers": names}]).encode()
        return files

    def write(self, place):
        """Writes it to a directory. Returns its name there, for skopeo, and for `spark` with a pipe perhaps."""
        form = "docker-archive" if self.form == "docker" else self.form
        tag = f":{self.tag}" if self.tag and form != "docker-archive" else ""
        if form == "oci":
            for name, data in self.layout().items():
                os.makedirs(os.path.dirname(f"{place}/image/{name}"), exist_ok=True)
                with open(f"{place}/image/{name}", "wb") as file:
                    file.write(data)
            return f"oci:{place}/image{tag}"
        files = self.docker() if form == "docker-archive" else self.layout()
        data = self.archive(files) if self.archive else tar_of(files)
        with open(f"{place}/image.tar", "wb") as file:
            file.write(self.wrap(data))
        return f"{form}:{place}/image.tar{self.name or tag}"


def tar_of(files, before=""):
    tape = Tape()
    for name, data in files.items():
        tape.add((before + name).encode(), data)
    return tape.end()


def docker(image, pack=lambda data: data):
    image.form = "docker"
    for layer in image.layers:
        layer.pack = pack


# How layers are packed

@kind
def nothing_odd(image, r):
    pass


@kind
def uncompressed(image, r):
    for layer in image.layers:
        layer.pack, layer.suffix = lambda data: data, ""


def packed(image, pack, suffix):
    """Packs all layers in a way that umoci does not know."""
    for layer in image.layers:
        layer.pack, layer.suffix = pack, suffix

    def tamed():
        for layer in image.layers:
            layer.pack, layer.suffix, layer.blob = gz, "+gzip", None

    image.tamed = tamed


@kind
def of_zstd(image, r):
    packed(image, r.choice([zstd, lambda data: halves(data, zstd)]), "+zstd")


@kind
def of_zstd_with_a_skippable_frame(image, r):
    packed(image, lambda data: SKIPPABLE + zstd(data), "+zstd")


@kind
def of_zstd_with_a_large_window(image, r):
    packed(image, lambda data: zstd(data, "--long=31"), "+zstd")


@kind
def odd_gzip(image, r):
    packed(image, PACKINGS[r.choice(["gzip-members", "gzip-empty-member", "gzip-fields"])], "+gzip")


@kind
def type_that_lies(image, r):
    packed(image, r.choice([gz, zstd, lambda data: data]), r.choice(["", "+zstd", "+gzip"]))


@kind
def layer_of_no_bytes(image, r):
    image.layers.insert(1, Layer(Tape()))
    image.layers[1].plain = b""
    image.config["history"].append({"created_by": "nothing"})


@kind
def layer_of_zeros(image, r):
    image.layers.append(Layer(Tape()))
    image.layers[-1].plain = bytes(r.choice([512, 1024, 10240]))


@kind
def layer_without_an_end(image, r):
    image.layers[0].tape.ending = r.choice([b"", bytes(BLOCK)])


@kind
def layer_twice(image, r):
    image.layers = [image.layers[0], image.layers[1], image.layers[0]]


@kind
def many_layers(image, r):
    image.layers += [Layer(Tape().add(b"n%d" % n, r.randbytes(10))) for n in range(r.randrange(20, 60))]


# What layers do to each other

@kind
def whiteouts(image, r):
    below, above = (layer.tape for layer in image.layers)
    for name in (b"a", b"d/x", b"d/y", b"o/x", b"o/sub/y", b"p/x", b"same"):
        below.add(name, name)
    above.add(b".wh.a").add(b"d/.wh.x").add(b".wh.not-there")
    above.add(b"o/.wh..wh..opq").add(b"o/new", b"new")
    above.add(b"p/new", b"new").add(b"p/.wh..wh..opq")
    above.add(b"same", b"of this layer").add(b"z/.wh.w")


@kind
def odd_whiteouts(image, r):
    below, above = (layer.tape for layer in image.layers)
    for name in (b"d/x", b"d/sub/y", b"e/x", b"l/x"):
        below.add(b"./" + name, name)
    above.add(b"./d/.wh.x", mode=0).add(b"/d/.wh.sub", kind=b"2", link=b"y").add(b"./.wh.e", b"not empty")
    above.add(b"l/.wh.x", kind=b"1", link=b"mark-0").add(b".wh..wh.aufs").dir(b".wh..wh.orph")


@kind
def other_types_above(image, r):
    below, above = (layer.tape for layer in image.layers)
    below.add(b"to-dir", b"x").add(b"to-file/in", b"x").add(b"to-link/in", b"x").dir(b"stays", mode=0o700).add(b"stays/in", b"x")
    below.add(b"link-to-dir", kind=b"2", link=b"stays").add(b"file", b"old", mode=0o4755)
    above.dir(b"to-dir").add(b"to-dir/in", b"y").add(b"to-file", b"y").add(b"to-link", kind=b"2", link=b"stays")
    above.dir(b"stays", mode=0o1711, uid=5).dir(b"link-to-dir").add(b"link-to-dir/in", b"z").add(b"file", b"new")


@kind
def hard_links_between_layers(image, r):
    image.layers[0].tape.add(b"one", b"x", mode=0o600)
    image.layers[1].tape.add(b"two", kind=b"1", link=b"one").add(b"three", kind=b"1", link=b"/two")


@kind
def devices_in_a_layer(image, r):
    image.layers[0].tape.add(b"was-a-file", b"x")
    image.layers[1].tape.add(b"null", kind=b"3", device=(1, 3)).add(b"was-a-file", kind=b"4", device=(7, 1))


@kind
def below_a_link_of_another_layer(image, r):
    image.layers[0].tape.dir(b"usr/lib").add(b"lib", kind=b"2", link=b"usr/lib")
    image.layers[1].tape.add(b"lib/x.so", b"x")


# What documents say

@kind
def null_in_documents(image, r):
    members = ["annotations", "subject"]
    image.edit_manifest = lambda m: (m.update({k: None for k in members}), m["layers"][0].update(annotations=None),
                                     m["config"].update(annotations=None, urls=None))
    image.config.update(history=r.choice([None, image.config["history"]]), author=None, variant=None)
    image.config["config"].update(Entrypoint=None, Labels=None, Volumes=None, ExposedPorts=None, User=None, StopSignal=None)


@kind
def null_for_a_type(image, r):
    image.manifest["mediaType"] = None


@kind
def null_for_a_platform(image, r):
    image.config["architecture"] = image.config["os"] = None


@kind
def absent_members(image, r):
    for member in r.sample(["created", "history", "architecture", "config"], 3):
        image.config.pop(member)
    del image.manifest["mediaType"]


@kind
def unknown_members(image, r):
    more = {"x-deep": [[[{"a": [None, 1.5, "\u00e4"]}]]], "data": "e30="}
    image.edit_manifest = lambda m: (m.update(more), m["config"].update(more), m["layers"][0].update(annotations={"k": "v"}))
    image.config.update(more, Variant="x", docker_version="1")
    image.config["config"].update(more, Healthcheck={"Test": ["NONE"]}, OnBuild=[], Domainname="")


@kind
def odd_history(image, r):
    image.config["history"] = r.choice([[], [{}], [{"empty_layer": True}] * 5, [{"created_by": "x"}] * 4])


@kind
def configuration_of_docker(image, r):
    image.config_type = DOCKER + "container.image.v1+json"
    image.tamed = lambda: setattr(image, "config_type", OCI + "config.v1+json")


@kind
def manifest_of_docker(image, r):
    """In a layout, as some builders write it: skopeo does not find it there."""
    kind = DOCKER + "distribution.manifest.v2+json"
    image.manifest["mediaType"] = image.entry["mediaType"] = kind
    image.config_type = DOCKER + "container.image.v1+json"
    for layer in image.layers:
        layer.extra["mediaType"] = DOCKER + "image.rootfs.diff.tar.gzip"

    def tamed():
        image.manifest["mediaType"] = image.entry["mediaType"] = OCI + "manifest.v1+json"
        image.config_type = OCI + "config.v1+json"
        for layer in image.layers:
            del layer.extra["mediaType"]

    image.tamed = tamed


@kind
def wrong_types(image, r):
    image.wrong = r.choice([("Entrypoint", "/bin/sh"), ("Cmd", "ls"), ("Env", "A=b"), ("User", 1000), ("ExposedPorts", ["80"])])
    image.config["config"].update([image.wrong])


@kind
def no_layers(image, r):
    image.layers, image.config["history"] = [], []


# Indexes

def other_platform(image):
    """An image of another platform that is the same otherwise."""
    config = {**image.config, "architecture": "s390x"}
    manifest = {**image.manifest, "config": {"mediaType": image.config_type, **image.put(config)},
                "layers": [layer.descriptor() for layer in image.layers]}
    return {**image.entry, **image.put(manifest), "platform": {"os": "linux", "architecture": "s390x"}}


def nested(image, entries):
    inner = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": entries}
    return [{"mediaType": OCI + "index.v1+json", **image.put(inner), "annotations": {REF: "v"}}]


HERE = {"os": "linux", "architecture": "amd64"}


def bare(entry):
    return {k: v for k, v in entry.items() if k != "annotations"}


@kind
def index_in_an_index(image, r):
    image.index = lambda entry: nested(image, [other_platform(image), {**bare(entry), "platform": HERE}])


@kind
def index_without_platforms(image, r):
    image.index = lambda entry: nested(image, [bare(entry), other_platform(image)])


@kind
def index_with_attestations(image, r):
    unknown = {"platform": {"os": "unknown", "architecture": "unknown"}}
    image.index = lambda entry: nested(image, [{**other_platform(image), **unknown}, {**bare(entry), "platform": HERE}])


@kind
def one_entry_without_a_name(image, r):
    image.tag = ""


@kind
def one_name_twice(image, r):
    image.index = lambda entry: [entry, entry]


@kind
def layout_with_other_images(image, r):
    image.index = lambda entry: [{**other_platform(image), "annotations": {REF: "other"}}, entry]


@kind
def layer_of_sha512(image, r):
    layer = image.layers[0].finish()
    image.form = "oci"
    name = "sha512:" + hashlib.sha512(layer.blob).hexdigest()
    layer.extra["digest"] = name
    image.blobs[name] = layer.blob


@kind
def layout_that_does_not_say_so(image, r):
    image.without = "oci-layout"
