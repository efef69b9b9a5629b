//! Servers that people run, under the filter and the limits of every spark.

use crate::consistency::with_databases;

/// Both would use the kernel's asynchronous I/O if they could: `io_setup` is refused as unknown.
#[test]
fn mariadb_and_nginx_start_and_serve() {
    let machine = with_databases();
    machine.spark(&["create", "web", "--base", "databases"]).ok();
    let sh = |script: &str| machine.spark(&["exec", "web", "--", "bash", "-euc", script]).ok();
    sh("mkdir -p /run/mysqld && chown mysql /run/mysqld 2>/dev/null || useradd -r mysql && chown mysql /run/mysqld
        mariadb-install-db --user=mysql --skip-test-db --datadir=/var/lib/mysql >&2
        setsid mariadbd --user=mysql --datadir=/var/lib/mysql --skip-networking >/var/log/mariadb 2>&1 </dev/null &
        until mariadb -e 'SELECT 1' >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done");
    let said = sh("mariadb -Ne 'CREATE DATABASE d; CREATE TABLE d.t (a int) ENGINE=InnoDB;
        INSERT INTO d.t VALUES (42); SELECT a FROM d.t'");
    assert_eq!(said, "42\n");
    sh("echo served >/var/www/html/index.html; nginx");
    let said = sh("exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; tail -n 1 <&3");
    assert_eq!(said, "served\n");
}
