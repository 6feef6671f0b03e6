import hashlib
import http.server
import threading
import urllib.request

import numpy as np
import pytest

from croplem_hf.cli import main
from croplem_hf.data import download
from croplem_hf.data.download import FILES, download_sen12ms, sen12ms_files
from croplem_hf.errors import DataError

CONTENT = np.random.default_rng(0).bytes(200_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `behave` is a list of what the next answers do, `asked` what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.behave, self.asked, self.ranges = {"a.tar.gz": CONTENT}, [], [], True
        self.url = f"http://127.0.0.1:{self.server_port}/files/"

    def handle_error(self, request, address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        server.asked.append((name, self.headers.get("Range")))
        act = server.behave.pop(0) if server.behave else "serve"
        if isinstance(act, int):
            self.send_error(act)
            return
        data = server.files.get(name)
        if data is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        start, status = 0, 200
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range", tag) == tag:
            start, status = int(asked[6:-1]), 206
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        body = data[start:]
        self.wfile.write(body[: len(body) // 2] if act == "cut" else body)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, out, files=None, **options):
    files = {"a.tar.gz": MD5} if files is None else files
    return download_sen12ms(out, files=files, url=server.url, progress=False, wait=0.01, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server, tmp_path):
    assert fetch(server, tmp_path) == [tmp_path / "a.tar.gz"]
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT and names(tmp_path) == ["a.tar.gz"]
    fetch(server, tmp_path)
    assert server.asked == [("a.tar.gz", None)]


def test_what_was_cut_off_goes_on(server, tmp_path):
    server.behave = ["cut", "cut", 503]
    fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_a_later_call_goes_on_too(server, tmp_path):
    server.behave = ["cut", *[503] * 10]
    with pytest.raises(DataError, match="a.tar.gz: .* cannot be reached .*run the same command again"):
        fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz.part").stat().st_size == 100_000 and not (tmp_path / "a.tar.gz").exists()
    server.behave, server.asked = [], []
    fetch(server, tmp_path)
    assert server.asked == [("a.tar.gz", "bytes=100000-")] and (tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_many_cuts_are_no_failure_while_bytes_come(server, tmp_path):
    server.behave = ["cut"] * 12
    fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT and len(server.asked) == 13


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.behave, server.ranges = ["cut"], False
    fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path):
    server.files["a.tar.gz"] = bytes(200_000)
    server.behave = ["cut", *[503] * 10]
    with pytest.raises(DataError):
        fetch(server, tmp_path)
    server.files["a.tar.gz"], server.behave = CONTENT, []
    fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT)
    fetch(server, tmp_path)
    (tmp_path / "a.tar.gz").unlink()
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_a_damaged_part_is_fetched_once_more_and_another_content_refused(server, tmp_path):
    (tmp_path / "a.tar.gz.part").write_bytes(bytes(1000))
    fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT
    server.files["b.tar.gz"] = b"something else"
    with pytest.raises(DataError, match=f"b.tar.gz: fetched twice with MD5 .*, expected {MD5}"):
        fetch(server, tmp_path, {"b.tar.gz": MD5})
    assert names(tmp_path) == ["a.tar.gz"]
    (tmp_path / "a.tar.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match="has another MD5"):
        fetch(server, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == b"mine"


@pytest.mark.parametrize(("code", "text"), [(401, "asks for a log-in"), (403, "refuses it"), (404, "has no such file")])
def test_what_trying_again_does_not_mend_is_not_tried_again(server, tmp_path, code, text):
    server.behave = [code] * 3
    with pytest.raises(DataError, match=f"a.tar.gz: .*{text}"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_one_bad_file_does_not_keep_the_others_away(server, tmp_path):
    with pytest.raises(DataError, match="b.tar.gz: .*has no such file"):
        fetch(server, tmp_path, {"b.tar.gz": MD5, "a.tar.gz": MD5})
    assert names(tmp_path) == ["a.tar.gz"]


def test_the_lists_of_patches_may_be_missing(server, tmp_path, caplog):
    files = {"a.tar.gz": MD5, "train_list.txt": FILES["train_list.txt"]}
    assert fetch(server, tmp_path, files) == [tmp_path / "a.tar.gz"]
    (tmp_path / "train_list.txt").write_text("another")
    assert fetch(server, tmp_path, files) == [tmp_path / "a.tar.gz"]
    assert "train_list.txt" in caplog.text


def test_nobody_there_and_other_addresses(tmp_path):
    with pytest.raises(DataError, match="cannot be reached"):
        download_sen12ms(tmp_path, files={"a": MD5}, url="http://127.0.0.1:9/", progress=False, wait=0.001)
    with pytest.raises(DataError, match="must begin with https"):
        download_sen12ms(tmp_path, files={"a": MD5}, url="file:///etc/", progress=False)


def test_no_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match="needs 0.0 GB"):
        fetch(server, tmp_path)


def test_a_disk_that_cannot_be_written_is_no_lost_connection(server, tmp_path):
    (tmp_path / "a.tar.gz.part").mkdir()
    with pytest.raises(DataError, match=r"a\.tar\.gz\.part: cannot be written .Is a directory"):
        fetch(server, tmp_path)
    (tmp_path / "a.tar.gz.part").rmdir()
    (tmp_path / "a.tar.gz.part.etag").unlink()
    (tmp_path / "a.tar.gz.part.etag").mkdir()
    with pytest.raises(DataError, match=r"a\.tar\.gz\.part: cannot be written .Is a directory"):
        fetch(server, tmp_path)
    assert len(server.asked) == 2


def test_no_redirect_leads_out_of_encryption():
    assert any(isinstance(handler, download._SafeRedirects) for handler in download._opener.handlers)
    request = urllib.request.Request("https://example.org/a")
    follow = download._SafeRedirects().redirect_request
    assert follow(request, None, 302, "", {}, "https://example.com/b").full_url == "https://example.com/b"
    with pytest.raises(download._HTTPError, match="leads to http://example.com/b, which is not encrypted"):
        follow(request, None, 302, "", {}, "http://example.com/b")


def test_the_files_of_sen12ms():
    assert len(FILES) == 14 and len(sen12ms_files()) == 14
    assert sorted(sen12ms_files(["summer"], ["s1"])) == ["ROIs1868_summer_s1.tar.gz", "test_list.txt", "train_list.txt"]
    assert FILES["ROIs1970_fall_s2.tar.gz"] == "b8f117818878da86b5f5e06400eb1866"
    assert FILES["ROIs1158_spring_lc.tar.gz"] == "6e2e8fa8b8cba77ddab49fd20ff5c37b"
    with pytest.raises(DataError, match="seasons must be some of"):
        sen12ms_files(["autumn"])
    with pytest.raises(DataError, match="kinds must be some of"):
        sen12ms_files(None, ["s3"])


def test_the_command(server, tmp_path, capsys, monkeypatch, answer):
    monkeypatch.setenv("CROPLEM_SEN12MS_URL", server.url)
    assert main(["data", "download", str(tmp_path / "out"), "--seasons", "summer", "--quiet"]) == 1
    assert "has no such file" in capsys.readouterr().err
    monkeypatch.setattr("croplem_hf.data.download.FILES", {"train_list.txt": MD5})
    server.files["train_list.txt"] = CONTENT
    assert main(["data", "download", str(tmp_path / "out"), "--seasons", "summer", "--quiet"]) == 0
    assert f"1 files, whole, in {tmp_path / 'out'}" in capsys.readouterr().out
    found = answer("data", "download", tmp_path / "out", "--seasons", "summer", "--quiet")
    assert found == {"out": str(tmp_path / "out"), "files": [str(tmp_path / "out" / "train_list.txt")]}
